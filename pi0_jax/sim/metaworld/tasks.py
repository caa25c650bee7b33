"""Holds Meta-World's 50 tasks: an instruction for each, and the groups by which they are counted.

The sentences are ours: Meta-World has none. The four difficulties are those by which results on all
50 tasks are published, as lerobot 0.6.1 holds them (lerobot/envs/metaworld_config.json).
"""

from types import MappingProxyType

INSTRUCTIONS = MappingProxyType(
    {
        "assembly": "pick up the nut and put it over the peg",
        "basketball": "drop the basketball through the hoop",
        "bin-picking": "move the block from one bin to the other",
        "box-close": "pick up the lid and close the box",
        "button-press": "press the button on the wall",
        "button-press-topdown": "press the button from above",
        "button-press-topdown-wall": "reach over the wall and press the button from above",
        "button-press-wall": "reach around the wall and press the button",
        "coffee-button": "press the coffee machine's button",
        "coffee-pull": "pull the mug away from the coffee machine",
        "coffee-push": "push the mug under the coffee machine",
        "dial-turn": "turn the dial half a turn",
        "disassemble": "lift the nut off the peg",
        "door-close": "close the door",
        "door-lock": "lock the door by turning its lock down",
        "door-open": "open the door",
        "door-unlock": "unlock the door by turning its lock up",
        "drawer-close": "close the drawer",
        "drawer-open": "open the drawer",
        "faucet-close": "turn the faucet clockwise to close it",
        "faucet-open": "turn the faucet counterclockwise to open it",
        "hammer": "hit the nail in the wall with the hammer",
        "hand-insert": "put the gripper into the hole",
        "handle-press": "press the handle down",
        "handle-press-side": "press the handle down from its side",
        "handle-pull": "pull the handle up",
        "handle-pull-side": "pull the handle up from its side",
        "lever-pull": "lift the lever up",
        "peg-insert-side": "insert the peg sideways into the hole",
        "peg-unplug-side": "pull the peg sideways out of the hole",
        "pick-out-of-hole": "take the puck out of the hole",
        "pick-place": "pick up the puck and hold it at the goal",
        "pick-place-wall": "pick up the puck and carry it over the wall to the goal",
        "plate-slide": "push the plate into the cabinet",
        "plate-slide-back": "pull the plate back out of the cabinet",
        "plate-slide-back-side": "drag the plate sideways out of the cabinet",
        "plate-slide-side": "push the plate sideways into the cabinet",
        "push": "push the puck to the goal",
        "push-back": "pull the puck back to the goal",
        "push-wall": "push the puck around the wall to the goal",
        "reach": "reach the goal",
        "reach-wall": "reach the goal behind the wall",
        "shelf-place": "pick up the block and put it on the shelf",
        "soccer": "kick the ball into the net",
        "stick-pull": "pull the box with the stick",
        "stick-push": "push the box with the stick",
        "sweep": "sweep the block off the table",
        "sweep-into": "sweep the block into the hole",
        "window-close": "slide the window shut",
        "window-open": "slide the window open",
    }
)

GROUPS = MappingProxyType(
    {
        "mt1": ("button-press-topdown",),
        "mt5": (
            "button-press-topdown",
            "door-open",
            "drawer-close",
            "drawer-open",
            "window-open",
        ),
        "mt10": (
            "button-press-topdown",
            "door-open",
            "drawer-close",
            "drawer-open",
            "peg-insert-side",
            "pick-place",
            "push",
            "reach",
            "window-close",
            "window-open",
        ),
        "mt50": tuple(INSTRUCTIONS),
        "easy": (
            *("button-press", "button-press-topdown", "button-press-topdown-wall"),
            *("button-press-wall", "coffee-button", "dial-turn", "door-close", "door-lock"),
            *("door-open", "door-unlock", "drawer-close", "drawer-open", "faucet-close"),
            *("faucet-open", "handle-press", "handle-press-side", "handle-pull"),
            *("handle-pull-side", "lever-pull", "peg-unplug-side", "plate-slide"),
            *("plate-slide-back", "plate-slide-back-side", "plate-slide-side", "reach"),
            *("reach-wall", "window-close", "window-open"),
        ),
        "medium": (
            *("basketball", "bin-picking", "box-close", "coffee-pull", "coffee-push", "hammer"),
            *("peg-insert-side", "push-wall", "soccer", "sweep", "sweep-into"),
        ),
        "hard": ("assembly", "hand-insert", "pick-out-of-hole", "pick-place", "push", "push-back"),
        "very hard": ("disassemble", "pick-place-wall", "shelf-place", "stick-pull", "stick-push"),
    }
)
