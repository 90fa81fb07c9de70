-- (issued, queued, leased, buffered, claimed, trained, rejected, expired, evaluated) at one instant, and how many of the
-- rejected were left out for want of signal.
local counted = redis.call('HMGET', counters, 'issued', 'trained', 'rejected', 'expired', 'evaluated', 'without_signal')
for i = 1, 6 do counted[i] = tonumber(counted[i] or 0) end
return {
  counted[1],
  redis.call('ZCARD', queue), redis.call('ZCARD', leases),
  redis.call('ZCARD', buffered), redis.call('ZCARD', claimed),
  counted[2], counted[3], counted[4], counted[5], counted[6],
}
