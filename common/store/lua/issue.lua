-- new -> queued. ARGV: (prompt id, prompt, facts)... Returns how many were new.
need_room()
local new = 0
for i = 1, #ARGV, 3 do
  local id = ARGV[i]
  if redis.call('HEXISTS', order, id) == 0 and not is_settled(id) then
    local sequence = redis.call('HINCRBY', counters, 'issued', 1)
    redis.call('HSET', prompts, id, ARGV[i + 1])
    redis.call('HSET', facts, id, ARGV[i + 2])
    redis.call('HSET', order, id, sequence)
    redis.call('ZADD', queue, sequence, id)
    new = new + 1
  end
end
if new > 0 then notify(issued_stream) end
return new
