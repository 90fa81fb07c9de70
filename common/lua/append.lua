-- queued or leased -> buffered, exactly once. ARGV: (prompt id, payload, arrival facts, what it says it was issued as)...
-- A prompt that is queued or leased has no trajectory yet: that is the whole test for duplicates.
-- What the prompt was issued as must be what the trajectory says: its group decides what it is compared with.
need_room()
local results, accepted = {}, 0
for i = 1, #ARGV, 4 do
  local id = ARGV[i]
  if (redis.call('HGET', facts, id) or ARGV[i + 3]) ~= ARGV[i + 3] then
    results[#results + 1] = 'mismatch'
  elseif redis.call('ZREM', leases, id) + redis.call('ZREM', queue, id) > 0 then
    redis.call('HDEL', owners, id)
    redis.call('HDEL', attempts, id)
    redis.call('HDEL', prompts, id)
    redis.call('HSET', payloads, id, ARGV[i + 1])
    redis.call('HSET', arrivals, id, ARGV[i + 2])
    redis.call('ZADD', buffered, redis.call('HINCRBY', counters, 'append_sequence', 1), id)
    results[#results + 1] = 'accepted'
    accepted = accepted + 1
  elseif redis.call('HEXISTS', order, id) == 1 or is_settled(id) then
    results[#results + 1] = 'duplicate'
  else
    results[#results + 1] = 'unknown'
  end
end
if accepted > 0 then
  local counted = redis.call('HMGET', counters, 'append_sequence', 'wake_at')
  if tonumber(counted[1]) >= tonumber(counted[2] or 0) then notify(appended_stream) end
end
return results
