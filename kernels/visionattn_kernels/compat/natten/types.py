"""Types of NATTEN's arguments, for code that imports them: one value for all axes, or one per axis."""

Dimension1DTypeOrDed = int | tuple[int]
Dimension2DTypeOrDed = int | tuple[int, int]
Dimension3DTypeOrDed = int | tuple[int, int, int]
CausalArg1DTypeOrDed = bool | tuple[bool]
CausalArg2DTypeOrDed = bool | tuple[bool, bool]
CausalArg3DTypeOrDed = bool | tuple[bool, bool, bool]
