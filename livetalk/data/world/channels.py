"""Names of the facial expression channels of the synthetic world (ARKit-style blendshapes)."""


def _both(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}_{side}" for name in names for side in "LR")


# Column order of Motion.expression and of the arrays in the packed face model.
EXPRESSIONS: tuple[str, ...] = (
    *_both("browDown", "browInnerUp", "browOuterUp", "cheekPuff", "cheekSquint"),
    *_both("eyeBlink", "eyeLookDown", "eyeLookIn", "eyeLookOut", "eyeLookUp", "eyeSquint", "eyeWide"),
    *("jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose"),
    *_both("mouthDimple", "mouthFrown"),
    *("mouthFunnel", "mouthLeft"),
    *_both("mouthLowerDown", "mouthPress"),
    *("mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"),
    *_both("mouthSmile", "mouthStretch", "mouthUpperUp", "noseSneer"),
)

CHANNEL: dict[str, int] = {name: column for column, name in enumerate(EXPRESSIONS)}
