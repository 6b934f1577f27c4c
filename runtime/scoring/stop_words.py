"""English words that seldom end a sentence."""

_WORDS = """
a an the this that these those such some any each every either neither both all another other others
i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself
we us our ours ourselves they them their theirs themselves who whom whose which what
and but or nor so yet for if because as than then while when where why how whether though although until unless
of at by in on to from with without into onto upon about above below over under between among through during
before after against toward towards off out up down within across along behind beside beyond near
am is are was were be been being do does did doing have has had having can could will would shall should may might
must not no there here again further once just only own same too very more most much many few also even still ever
don't doesn't didn't isn't aren't wasn't weren't won't wouldn't can't couldn't shouldn't haven't hasn't hadn't
i'm i'd i'll i've you're you'd you'll you've he's he'd he'll she's she'd she'll it's it'll we're we'd we'll we've
they're they'd they'll they've that's there's
"""
STOP_WORDS = frozenset(_WORDS.split())
