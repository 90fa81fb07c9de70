-- buffered -> claimed, all or none. ARGV: step, prompt ids...
-- Claiming again for the same step is no error, so that a lost reply can be asked for again.
-- Returns '' or the first id that can't be claimed.
local step = ARGV[1]
for i = 2, #ARGV do
  local id = ARGV[i]
  if not redis.call('ZSCORE', buffered, id) and redis.call('HGET', claim_steps, id) ~= step then return id end
end
local ids, steps = {}, {}
for i = 2, #ARGV do
  local id = ARGV[i]
  if redis.call('ZREM', buffered, id) == 1 then
    ids[#ids + 1] = id
    steps[#steps + 1], steps[#steps + 2] = id, step
  end
end
add_in_order(claimed, 'claim_sequence', ids)
call_many('HSET', claim_steps, steps)
return ''
