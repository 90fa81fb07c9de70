# A line of Redis' log as a JSON object, as all other services write theirs.
#   1:M 24 Nov 2026 15:06:02.123 * Ready to accept connections
s/[[:cntrl:]]/ /g
s/\\/\\\\/g
s/"/\\"/g
/^ *$/d
s/^[0-9]+:[A-Z] ([0-9]{2}) Jan ([0-9]{4}) /\2-01-\1T/
s/^[0-9]+:[A-Z] ([0-9]{2}) Feb ([0-9]{4}) /\2-02-\1T/
s/^[0-9]+:[A-Z] ([0-9]{2}) Mar ([0-9]{4}) /\2-03-\1T/
s/^[0-9]+:[A-Z] ([0-9]{2}) Apr ([0-9]{4}) /\2-04-\1T/
s/^[0-9]+:[A-Z] ([0-9]{2}) May ([0-9]{4}) /\2-05-\1T/
s/^[0-9]+:[A-Z] ([0-9]{2}) Jun ([0-9]{4}) /\2-06-\1T/
s/^[0-9]+:[A-Z] ([0-9]{2}) Jul ([0-9]{4}) /\2-07-\1T/
s/^[0-9]+:[A-Z] ([0-9]{2}) Aug ([0-9]{4}) /\2-08-\1T/
s/^[0-9]+:[A-Z] ([0-9]{2}) Sep ([0-9]{4}) /\2-09-\1T/
s/^[0-9]+:[A-Z] ([0-9]{2}) Oct ([0-9]{4}) /\2-10-\1T/
s/^[0-9]+:[A-Z] ([0-9]{2}) Nov ([0-9]{4}) /\2-11-\1T/
s/^[0-9]+:[A-Z] ([0-9]{2}) Dec ([0-9]{4}) /\2-12-\1T/
t dated
b plain
:dated
s/^([^ ]+) \# (.*)$/{"time":"\1Z","level":"warning","service":"redis","event":"\2"}/
s/^([^ ]+) \* (.*)$/{"time":"\1Z","level":"info","service":"redis","event":"\2"}/
s/^([^ {]+) [-.] (.*)$/{"time":"\1Z","level":"debug","service":"redis","event":"\2"}/
/^\{"time"/b
:plain
s/^(.*)$/{"level":"info","service":"redis","event":"\1","unstructured":true}/
