-- Forgets those whose heartbeat is late; returns the others.
local now = now_ms()
for _, id in ipairs(redis.call('ZRANGEBYSCORE', member_deadlines, '-inf', now)) do
  redis.call('HDEL', members, id)
end
redis.call('ZREMRANGEBYSCORE', member_deadlines, '-inf', now)
return redis.call('HVALS', members)
