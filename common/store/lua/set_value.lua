-- KEYS: members, deadlines, values. ARGV: name, value.
redis.call('HDEL', KEYS[3], ARGV[1])  -- a write that needs no room: so Redis lets the other through, however full it is
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
return 1
