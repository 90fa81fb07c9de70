-- buffered -> rejected, all or none, without a dead letter: groups that have no signal (dynamic sampling).
-- ARGV: name and text of a value to remember with it, prompt ids... Returns how many: 0 when one is not buffered.
local left_out = {}
for i = 3, #ARGV do
  if not redis.call('ZSCORE', buffered, ARGV[i]) then return 0 end
  left_out[#left_out + 1] = ARGV[i]
end
settle(left_out, 'rejected')
redis.call('HINCRBY', counters, 'without_signal', #left_out)
never_mind_room()
redis.call('HSET', values, ARGV[1], ARGV[2])
notify(appended_stream)
return #left_out
