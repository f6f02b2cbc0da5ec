"""Processing a range of a stream again, beside the live service, and putting the result in its place.

``docs/decisions/0010-replay.md`` says why it is done like this.

- :mod:`.ranges`: what the operator asked for, as whole commits of each partition;
- :mod:`.work`: one worker process, in the namespace of the replay;
- :mod:`.run`: starts the workers and finishes what they did;
- :mod:`.carry`: folds the live lake's events outside the range into the replay's tables;
- :mod:`.compare` and :mod:`.promote`: how it differs from live, and the swap.
"""
