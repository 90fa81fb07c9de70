-- leased -> queued. ARGV: owner, 'all' or 'these', prompt ids... Returns how many.
local ids = {}
if ARGV[2] == 'all' then
  local owned = redis.call('HGETALL', owners)
  for i = 1, #owned, 2 do
    if owned[i + 1] == ARGV[1] then ids[#ids + 1] = owned[i] end
  end
else
  for i = 3, #ARGV do
    if redis.call('HGET', owners, ARGV[i]) == ARGV[1] then ids[#ids + 1] = ARGV[i] end
  end
end
for _, id in ipairs(ids) do requeue(id) end
if #ids > 0 then notify(issued_stream) end
return #ids
