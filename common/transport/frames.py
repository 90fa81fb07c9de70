"""The first frame of each message between sender and receiver. The others::

TRAJECTORY  id, payload             sender -> receiver
OVERSIZED   id, head, size          instead of a payload above transport.max_message_mib
ACK         ids, one a line         receiver -> sender: Redis has them, forget them
REFUSED     id, reason              it is in the dead-letter stream, forget it
"""

TRAJECTORY = b"trajectory"
OVERSIZED = b"oversized"
ACK = b"ack"
REFUSED = b"refused"
