-- claimed -> trained. ARGV: name and text of a value to remember with it ('', '': none), prompt ids... Returns how many.
local trained, seen = {}, {}
for i = 3, #ARGV do
  local id = ARGV[i]
  if not seen[id] and redis.call('ZSCORE', claimed, id) then
    seen[id] = true
    trained[#trained + 1] = id
  end
end
settle(trained, 'trained')
if ARGV[1] ~= '' then
  never_mind_room()
  redis.call('HSET', values, ARGV[1], ARGV[2])
end
return #trained
