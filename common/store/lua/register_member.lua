-- ARGV: id, member, ttl ms. Returns the number of the learner's incarnation, 0 for none.
local now = now_ms()
never_mind_room()
redis.call('HSET', members, ARGV[1], ARGV[2])
redis.call('ZADD', member_deadlines, now + ARGV[3], ARGV[1])
return tonumber(string.match(redis.call('HGET', incarnations, 'learner') or '', '^%d+') or 0)
