-- A new incarnation of ARGV[1]; from here on the one before it is refused. ARGV: name, token, who it is, prefix of keys.
-- Returns its number. Asked again with the same token, as after a lost reply, it stays the same.
local before = redis.call('HGET', incarnations, ARGV[1]) or '0::'
local number, token = string.match(before, '^(%d+):(%x*):')
if token == ARGV[2] then return tonumber(number) end
never_mind_room()
redis.call('DEL', ARGV[4] .. number .. ':' .. token)
number = string.format('%.0f', number + 1)
redis.call('HSET', incarnations, ARGV[1], number .. ':' .. ARGV[2] .. ':' .. ARGV[3])
redis.call('SET', ARGV[4] .. number .. ':' .. ARGV[2], 1)
return tonumber(number)
