"""A small synthetic corpus in the form of IMDB: reviews written by a seeded grammar, not by people.

It lets the whole pipeline run in seconds without a network. The label is the reviewer's verdict on *this* film. Around
that one sentence are the reasons why word counts fail (logistic regression on them is right for 52 % of the test
split): negation, concessions with the opposite sentiment, opinions of other people and of other films, and plot.
"""

import random

POSITIVE, NEGATIVE, ASPECTS, PEOPLE, FILMS = (
    line.split(",")
    for line in """\
wonderful,superb,moving,brilliant,charming,gripping,delightful,masterful,funny,beautiful
dreadful,tedious,boring,clumsy,bland,awful,shallow,lifeless,painful,dull
cast,score,script,photography,dialogue,pacing,opening,finale
my brother,my neighbour,the critic next to me,everyone at work,the man on the radio,her sister
the first part,the novel,the remake,his previous film,the series,the short before it
""".splitlines()
)
PLOT = """\
a sailor comes home after twelve years and finds the house empty
the story moves from paris to a village in the north
two brothers inherit a hotel that nobody visits
a detective follows a letter that was never sent
the second half takes place on a train in winter
an old teacher writes to a student she never met
most scenes were shot at night near the harbour
the running time is a little over two hours
a young pianist loses her hearing before the concert
the director also wrote the screenplay""".splitlines()


def _adjective(rng: random.Random, positive: bool) -> str:
    return rng.choice(POSITIVE if positive else NEGATIVE)


def _verdict(rng: random.Random, positive: bool) -> str:
    """A verdict on this film; one third use negation, one third a concession."""
    same, opposite = _adjective(rng, positive), _adjective(rng, not positive)
    aspect = rng.choice(ASPECTS)
    clauses = [
        f"i found this film {same}",
        f"for me this film is {same}",
        f"i would not call this film {opposite}",
        f"this film is anything but {opposite}",
        f"although the {aspect} is {opposite} , this film is {same}",
        f"the {aspect} is {opposite} , but this film is never {opposite} and i found it {same}",
    ]
    return rng.choice(clauses)


def _distractor(rng: random.Random) -> str:
    word = _adjective(rng, rng.random() < 0.5)
    clauses = [
        f"{rng.choice(PEOPLE)} called it {word}",
        f"{rng.choice(PEOPLE)} did not find it {word}",
        f"{rng.choice(FILMS)} was {word}",
        f"{rng.choice(FILMS)} was not {word}",
    ]
    return rng.choice(clauses)


def _review(rng: random.Random, positive: bool) -> str:
    around = [_distractor(rng) for _ in range(rng.randint(1, 3))]
    around += rng.sample(PLOT, rng.randint(1, 4))
    rng.shuffle(around)
    around.insert(rng.randint(0, len(around)), _verdict(rng, positive))
    return " . ".join(around) + " ."


def generate(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Generates `count` different reviews and their labels (0 negative, 1 positive, alternating)."""
    rng = random.Random(seed)
    texts: dict[str, int] = {}
    while len(texts) < count:
        label = len(texts) % 2
        texts.setdefault(_review(rng, label == 1), label)
    return list(texts), list(texts.values())


def corpus(train: int = 5000, test: int = 1000) -> tuple[tuple[list[str], list[int]], tuple[list[str], list[int]]]:
    """Training and test reviews with no text in common."""
    texts, labels = generate(train + test, seed=20)
    return (texts[:train], labels[:train]), (texts[train:], labels[train:])
