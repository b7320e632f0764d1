"""Colours, markers and lines that all figures of an analysis share."""

# Okabe and Ito's colours, which colour-blind readers tell apart; the markers tell more classes apart than these are.
COLOURS = ("#d55e00", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", ">", "p", "h")
# Thin lines in yellow cannot be seen on white.
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LINES = ("-", "--", "-.", ":")
# Tol's muted colours: speakers do not look like emotions.
SPEAKER_COLOURS = ("#332288", "#cc6677", "#44aa99", "#ddcc77", "#882255", "#88ccee", "#999933", "#aa4499", "#117733")
GREY = "#9a9a9a"


def look(place: int) -> tuple[str, str]:
    """Colour and marker of the class at a place."""
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]


def speaker_look(place: int) -> tuple[str, str]:
    """Colour and marker of the speaker at a place."""
    return SPEAKER_COLOURS[place % len(SPEAKER_COLOURS)], MARKERS[place % len(MARKERS)]


def line(place: int) -> tuple[str, str]:
    """Colour and style of the line at a place: no two of the first 28 are the same."""
    return LINE_COLOURS[place % len(LINE_COLOURS)], LINES[place // len(LINE_COLOURS) % len(LINES)]


def state_colour(place: int) -> str:
    """Colour of a state of training: grey before it, then one for each stage."""
    return GREY if place == 0 else LINE_COLOURS[(place - 1) % len(LINE_COLOURS)]
