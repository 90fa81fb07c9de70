-- ARGV: name, value.
never_mind_room()
redis.call('HSET', values, ARGV[1], ARGV[2])
return 1
