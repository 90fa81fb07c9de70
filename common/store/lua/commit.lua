-- claimed -> trained. ARGV: prompt ids... Returns how many.
local trained, seen = {}, {}
for _, id in ipairs(ARGV) do
  if not seen[id] and redis.call('ZSCORE', claimed, id) then
    seen[id] = true
    trained[#trained + 1] = id
  end
end
settle(trained, 'trained')
return #trained
