-- queued, leased, buffered or claimed -> rejected, with a dead letter.
-- ARGV: prompt id, reason, detail, leased by ('' for any state), size and head of a payload ('' for the stored one).
local id, leased_by = ARGV[1], ARGV[4]
if leased_by ~= '' then
  if redis.call('HGET', owners, id) ~= leased_by then return 0 end
elseif redis.call('HEXISTS', order, id) == 0 then
  return 0
end
local size, head = ARGV[5], ARGV[6]
if head == '' then
  local payload = redis.call('HGET', payloads, id) or redis.call('HGET', prompts, id) or ''
  size, head = #payload, string.sub(payload, 1, 4096)
end
settle({id}, 'rejected')
bury(ARGV[2], ARGV[3], leased_by, size, head)
notify(appended_stream)  -- the learner waits for a batch: tell it that this one will not come
return 1
