-- claimed -> trained. ARGV: prompt ids... Returns how many.
local trained = 0
for i = 1, #ARGV do
  if redis.call('ZSCORE', claimed, ARGV[i]) then
    settle(ARGV[i], 'trained')
    trained = trained + 1
  end
end
return trained
