-- buffered -> evaluated: counted as such, and never trained. ARGV: prompt ids... Returns how many were buffered.
local evaluated, seen = {}, {}
for _, id in ipairs(ARGV) do
  if not seen[id] and redis.call('ZSCORE', buffered, id) then
    seen[id] = true
    evaluated[#evaluated + 1] = id
  end
end
settle(evaluated, 'evaluated')
return #evaluated
