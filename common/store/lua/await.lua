-- ARGV: prompt ids somebody waits for. Returns (newest notification id, how many of them are still to come).
-- 0: all are buffered, or one will never be. The appends before that many more tell nobody: none could end the wait.
local missing = 0
for _, id in ipairs(ARGV) do
  if is_leased(id) or redis.call('ZSCORE', queue, id) then
    missing = missing + 1
  elseif not redis.call('ZSCORE', buffered, id) then
    missing = 0
    break
  end
end
never_mind_room()
if missing > 0 then
  redis.call('HSET', counters, 'wake_at', (redis.call('HGET', counters, 'append_sequence') or 0) + missing)
else
  redis.call('HDEL', counters, 'wake_at')
end
return {last_id(appended_stream), missing}
