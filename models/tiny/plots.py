"""The plots of the story grammar: each is what happens to a hero, between the opening and the ending of a story."""

from collections.abc import Callable
from dataclasses import dataclass

import facts
from dice import Dice


@dataclass(frozen=True)
class Hero:
    """Who a story is about, with the words that stand for the name."""

    name: str
    they: str
    them: str
    their: str
    kind: str


def friend_of(dice: Dice, hero: Hero) -> str:
    """A name that is not the hero's."""
    return dice.evenly([name for name in facts.GIRLS + facts.BOYS if name != hero.name])


def animal_met_by(dice: Dice, hero: Hero) -> facts.Animal:
    """An animal of the kind one meets on a walk, unlike the hero."""
    return dice.evenly([animal for animal in facts.ANIMALS[:7] if animal.name != hero.kind])


def lost_and_found(dice: Dice, hero: Hero) -> list[str]:
    """Something is lost, looked for and found."""
    thing, friend = dice.evenly(facts.LOST_THINGS), friend_of(dice, hero)
    wrong, right = dice.two(facts.HIDING_PLACES)
    return [
        f"One day {hero.name} could not find {hero.their} {thing}.",
        f"{hero.they.capitalize()} looked {wrong}, but it was not there.",
        f'"Please help me find my {thing}," said {hero.name}.',
        f"{friend} came and looked too.",
        f"At last they found the {thing} {right}.",
        f'"Thank you, {friend}!" said {hero.name}.',
    ]


def new_friend(dice: Dice, hero: Hero) -> list[str]:
    """A hungry animal becomes a friend."""
    animal = animal_met_by(dice, hero)
    food = dice.pick(facts.FOODS)
    return [
        f"One morning {hero.name} met a small {animal.name} on the road.",
        f"The {animal.name} was hungry and cold.",
        f"{hero.name} gave it some {food} and sat down beside it.",
        f"The {animal.name} ate everything and looked at {hero.name} with bright eyes.",
        f'"You can come home with me," said {hero.name}.',
        f"So {hero.name} and the {animal.name} became friends.",
    ]


def storm(dice: Dice, hero: Hero) -> list[str]:
    """A storm comes and goes."""
    friend, shelter = friend_of(dice, hero), dice.pick(("an old barn", "a cave", "a small church", "a mill"))
    return [
        f"One afternoon {hero.name} went for a walk with {friend}.",
        "Suddenly the sky turned dark and it began to rain.",
        f"They ran to {shelter} and waited there.",
        f'"I am afraid of the thunder," said {friend}.',
        f"{hero.name} sang a song until the storm was over.",
        "When they came out, there was a rainbow over the hills.",
    ]


def garden(dice: Dice, hero: Hero) -> list[str]:
    """A seed becomes a plant."""
    plant = dice.evenly(facts.PLANTS)
    name = plant.split(" ", 1)[1]
    return [
        f"In spring {hero.name} wanted to grow {plant}.",
        f"{hero.they.capitalize()} put a seed into the ground and gave it water every day.",
        "For a long time nothing happened.",
        f'"You must be patient," said {hero.their} grandmother.',
        "Then one morning there was a small green leaf.",
        f"By the end of the summer the {name} was taller than {hero.name}.",
    ]


def journey(dice: Dice, hero: Hero) -> list[str]:
    """A journey to a city and back."""
    city, friend = dice.evenly(facts.CITIES), friend_of(dice, hero)
    return [
        f"One day {hero.name} took the train to {city.name}.",
        f"{hero.name} wanted to visit {friend}, who lived there.",
        city.sight,
        f"{hero.name} and {friend} walked through the streets until evening.",
        f'"{city.name} is wonderful," said {hero.name}, "but I miss my home."',
        f"The next day {hero.they} went back with a bag full of presents.",
    ]


def building(dice: Dice, hero: Hero) -> list[str]:
    """Something is built at the second try."""
    thing, friend = dice.evenly(facts.BUILDS), friend_of(dice, hero)
    return [
        f"{hero.name} wanted to build a {thing}.",
        f"{hero.they.capitalize()} worked all morning, but the {thing} broke.",
        f"{hero.name} was sad and sat down in the grass.",
        f'"Let us try again together," said {friend}.',
        f"They worked slowly and carefully, and this time the {thing} was strong.",
        f"Everybody came to see the {thing}.",
    ]


def baking(dice: Dice, hero: Hero) -> list[str]:
    """Food is made and shared."""
    food, friend = dice.evenly(facts.FOODS), friend_of(dice, hero)
    return [
        f"It was a cold day, and {hero.name} wanted to make {food}.",
        f"{hero.their.capitalize()} grandmother showed {hero.them} how to do it.",
        "Soon the whole house smelled sweet and warm.",
        f"Then {friend} knocked at the door.",
        f'"May I have some {food}?" asked {friend}.',
        f"They sat by the fire and shared the {food}.",
    ]


def night_walk(dice: Dice, hero: Hero) -> list[str]:
    """A sound in the night has a harmless cause."""
    animal = animal_met_by(dice, hero)
    return [
        f"One night {hero.name} heard a strange sound outside.",
        f"{hero.they.capitalize()} took a lantern and opened the door.",
        "The garden was dark, and the wind moved the leaves.",
        f'"Who is there?" asked {hero.name}.',
        f"Two bright eyes looked back, but it was only {animal.article} {animal.name}.",
        f"{hero.name} laughed and was not afraid any more.",
    ]


def race(dice: Dice, hero: Hero) -> list[str]:
    """A race is lost for a good reason."""
    friend, prize = friend_of(dice, hero), dice.pick(("a gold cup", "a blue ribbon", "a basket of apples"))
    return [
        f"Every year there was a race, and the prize was {prize}.",
        f"{hero.name} ran as fast as the wind.",
        f"But near the end {friend} fell and hurt a knee.",
        f"{hero.name} stopped and helped {friend} to get up.",
        "They came in last, but everybody clapped.",
        f'"You are a true friend," said {friend}.',
    ]


def treasure(dice: Dice, hero: Hero) -> list[str]:
    """A map leads to something small and good."""
    place, treasure = dice.evenly(facts.HIDING_PLACES), dice.evenly(facts.TREASURES)
    friend = friend_of(dice, hero)
    return [
        f"One rainy day {hero.name} found a map in an old book.",
        f"There was a red cross {place}.",
        f"{hero.name} ran to {friend} and showed the map.",
        "Together they took a spade and began to dig.",
        f"After an hour they found {treasure}.",
        f'"We will keep it safe," said {hero.name}.',
    ]


def rescue(dice: Dice, hero: Hero) -> list[str]:
    """An animal in trouble is set free."""
    animal = animal_met_by(dice, hero)
    trouble = dice.pick(("was stuck in a fence", "could not get out of a hole", "was caught in the thorns"))
    return [
        f"On the way to the river {hero.name} heard a cry.",
        f"{animal.article.capitalize()} {animal.name} {trouble}.",
        f'"Do not be afraid," said {hero.name}.',
        f"{hero.they.capitalize()} worked gently until the {animal.name} was free.",
        f"The next morning there was a gift at the door of {hero.name}.",
        f"It was a little heap of {dice.pick(('nuts', 'berries', 'flowers'))}.",
    ]


def festival(dice: Dice, hero: Hero) -> list[str]:
    """A feast nearly fails for want of light."""
    food, friend = dice.pick(facts.FOODS), friend_of(dice, hero)
    return [
        "In autumn there was a great festival.",
        f"{friend} brought {food}, and {hero.name} brought a drum.",
        "When the sun went down, all the lamps went out.",
        f'"I know what to do," said {hero.name}.',
        f"{hero.they.capitalize()} hung a hundred paper lanterns in the trees.",
        "Then they danced until the moon was high.",
    ]


PLOTS: tuple[Callable[[Dice, Hero], list[str]], ...] = (
    lost_and_found,
    new_friend,
    storm,
    garden,
    journey,
    building,
    baking,
    night_walk,
    race,
    treasure,
    rescue,
    festival,
)
