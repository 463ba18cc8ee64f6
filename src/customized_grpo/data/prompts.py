"""Built-in prompts for photographs of one subject; {} is its class word.

Each prompt suits animals, everyday objects and toys. None uses a scene of DreamBench's prompts, so that training does
not see what that benchmark measures. "the" avoids the choice between "a" and "an".
"""

# 10 places, 5 kinds of light and weather, 5 activities and surroundings, 5 materials, 5 styles and camera angles
TRAINING = (
    "the {} beside a waterfall among ferns",
    "the {} at the edge of a desert canyon",
    "the {} on the deck of a sailing ship",
    "the {} inside a greenhouse full of orchids",
    "the {} in an old library between tall shelves",
    "the {} on a platform of a railway station",
    "the {} in a kitchen, next to a bowl of lemons",
    "the {} at a night market under paper lanterns",
    "the {} among rows of lavender",
    "the {} in a cave lit by glowing crystals",
    "the {} in thick morning fog",
    "the {} in heavy rain at night, with neon reflections",
    "the {} in the last light of the day, seen against the sun",
    "the {} by candlelight in a dark room",
    "the {} under the northern lights",
    "the {} sitting in a wicker basket",
    "the {} riding in an open red convertible",
    "the {} on a stack of pancakes, seen from the side",
    "the {} surrounded by drifting soap bubbles",
    "the {} half buried in a heap of toy bricks",
    "the {} made of blown glass",
    "the {} carved out of dark wood",
    "the {} covered in moss and tiny mushrooms",
    "the {} painted in bright green",
    "the {} wrapped in a knitted yellow blanket",
    "a watercolour of the {} on rough paper",
    "a charcoal drawing of the {}",
    "the {} as a sticker with a thick white border",
    "a photograph of the {} from far above",
    "an extreme close-up of the {} on a black background",
)

# The same kinds of prompt, but none of the places or materials of the training prompts.
VALIDATION = (
    "the {} on a bridge over a canal",
    "the {} on the surface of the moon",
    "the {} in a bakery window between loaves of bread",
    "the {} next to a campfire under a starry sky",
    "the {} in a thunderstorm, with lightning behind it",
    "the {} in a bathtub full of foam",
    "the {} on a skateboard, rolling downhill",
    "the {} cast in bronze, on a marble pedestal",
    "the {} in bright orange",
    "an oil painting of the {} in a golden frame",
)
