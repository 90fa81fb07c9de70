-- leased -> leased for longer. ARGV: owner, lease ms, prompt ids... Returns the ids that are not the owner's.
never_mind_room()
local lost = {}
local deadline = now_ms() + ARGV[2]
for i = 3, #ARGV do
  local id = ARGV[i]
  if redis.call('HGET', owners, id) == ARGV[1] then
    redis.call('ZADD', leases, deadline, id)
  else
    lost[#lost + 1] = id
  end
end
return lost
