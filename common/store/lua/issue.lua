-- new -> queued. ARGV: 'first' or 'last', (prompt id, prompt, facts)... Returns how many were new.
-- 'first': before all that were issued otherwise, in their own order; so they stay when a lease runs out.
local FIRST = -2^50  -- sequence numbers never come near it, and a score holds it exactly
need_room()
local new = 0
for i = 2, #ARGV, 3 do
  local id = ARGV[i]
  if redis.call('HEXISTS', order, id) == 0 and not is_settled(id) then
    local sequence = redis.call('HINCRBY', counters, 'issued', 1)
    redis.call('HSET', prompts, id, ARGV[i + 1])
    redis.call('HSET', facts, id, ARGV[i + 2])
    local place = sequence
    if ARGV[1] == 'first' then place = string.format('%.0f', FIRST + sequence) end
    redis.call('HSET', order, id, place)
    redis.call('ZADD', queue, place, id)
    new = new + 1
  end
end
if new > 0 then notify(issued_stream) end
return new
