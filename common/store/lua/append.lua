-- queued or leased -> buffered, exactly once. ARGV: (prompt id, payload, arrival facts, what it says it was
-- issued as, the same of an open prompt, the same as an older version wrote it)...
-- A prompt that is queued or leased has no trajectory yet: that is the whole test for duplicates.
-- What the prompt was issued as must be what the trajectory says: its group decides what it is compared with, its
-- tokens what is trained.
need_room()
local results, ids, messages, arrived = {}, {}, {}, {}
for i = 1, #ARGV, 6 do
  local id = ARGV[i]
  local issued = redis.call('HGET', facts, id) or ARGV[i + 3]
  if issued ~= ARGV[i + 3] and issued ~= ARGV[i + 4] and issued ~= ARGV[i + 5] then
    results[#results + 1] = 'mismatch'
  elseif redis.call('ZREM', leases, id) + redis.call('ZREM', queue, id) > 0 then
    ids[#ids + 1] = id
    messages[#messages + 1], messages[#messages + 2] = id, ARGV[i + 1]
    arrived[#arrived + 1], arrived[#arrived + 2] = id, ARGV[i + 2]
    results[#results + 1] = 'accepted'
  elseif redis.call('HEXISTS', order, id) == 1 or is_settled(id) then
    results[#results + 1] = 'duplicate'
  else
    results[#results + 1] = 'unknown'
  end
end
if #ids > 0 then
  for _, key in ipairs({owners, attempts, prompts}) do call_many('HDEL', key, ids) end
  call_many('HSET', payloads, messages)
  call_many('HSET', arrivals, arrived)
  add_in_order(buffered, 'append_sequence', ids)
  local counted = redis.call('HMGET', counters, 'append_sequence', 'wake_at')
  if tonumber(counted[1]) >= tonumber(counted[2] or 0) then notify(appended_stream) end
end
return results
