-- queued -> leased, oldest first. ARGV: owner, count, lease ms, most expiries.
-- Returns (newest notification id, ms until the next lease expires or -1, (prompt id, prompt)...).
expire_leases(tonumber(ARGV[4]))
local now = now_ms()
local reply = {last_id(issued_stream), -1}
for _, id in ipairs(redis.call('ZRANGE', queue, 0, ARGV[2] - 1)) do
  redis.call('ZREM', queue, id)
  redis.call('ZADD', leases, now + ARGV[3], id)
  redis.call('HSET', owners, id, ARGV[1])
  reply[#reply + 1], reply[#reply + 2] = id, redis.call('HGET', prompts, id)
end
local next_lease = redis.call('ZRANGE', leases, 0, 0, 'WITHSCORES')
if next_lease[2] then reply[2] = math.max(0, next_lease[2] - now) end
return reply
