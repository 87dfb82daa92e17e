"""A seeded grammar of small English texts: the whole training data of the tiny model, and free of other people's text.

`documents(seed)` is an endless stream of documents: portraits of cities and animals, weather reports, plain facts,
introductions, stories, and conversations about all of these. Run as a program, it prints some of them.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator

import facts
from dice import Dice
from plots import PLOTS, Hero

# A conversation as the chat template in tokenizer_config.json writes it.
END = "</s>"
QUESTION = "User:\n"
ANSWER = "\nAssistant:\n"


class Storyteller:
    """Writes documents, each choice drawn from one seeded generator."""

    def __init__(self, seed: int) -> None:
        self.dice = Dice(seed)

    def document(self) -> str:
        """One document, of a kind drawn by weight."""
        kinds: tuple[tuple[Callable[[], str], int], ...] = (
            (self.city, 18),
            (self.animal, 12),
            (self.weather, 6),
            (self.season, 2),
            (self.capital, 4),
            (self.fact, 8),
            (self.introduction, 5),
            (self.story, 25),
            (self.conversation, 20),
        )
        return self.dice.weighted(kinds)()

    def city(self) -> str:
        """A portrait of a city."""
        # The first city is the one that people try first.
        city = facts.CITIES[0] if self.dice.chance(0.15) else self.dice.evenly(facts.CITIES)
        return self.city_portrait(city)

    def city_portrait(self, city: facts.City) -> str:
        """The sentences about `city`, the last ones not always."""
        adjective = self.dice.pick(("", "", "", "beautiful ", "famous ", "lively "))
        sentences = [f"{city.name} is a {adjective}{city.kind}.", f"It is in {city.country}.", city.sight]
        sentences += [sentence for sentence in (city.weather, city.people) if self.dice.chance(0.9)]
        if self.dice.chance(0.4):
            sentences.append(
                self.dice.pick(
                    (
                        "Many people come to see it every year.",
                        "In the evening the lights go on, one after another.",
                        "If you go there, you will not forget it.",
                    )
                )
            )
        return " ".join(sentences)

    def animal(self) -> str:
        """A portrait of an animal."""
        return self.animal_portrait(self.dice.evenly(facts.ANIMALS))

    def animal_portrait(self, animal: facts.Animal) -> str:
        """The sentences about `animal`."""
        one = f"{animal.article} {animal.name}"
        sentences = [
            f"{one.capitalize()} is a {animal.kind}.",
            f"{animal.plural.capitalize()} live {animal.home}.",
            f"They eat {animal.food}.",
            f"{one.capitalize()} {animal.gift}.",
        ]
        if self.dice.chance(0.4):
            sentences.append(
                self.dice.pick(
                    (
                        f"If you are quiet, you may see {one} one day.",
                        f"Children like stories about {animal.plural}.",
                        f"No two {animal.plural} are quite the same.",
                    )
                )
            )
        return " ".join(sentences)

    def weather(self) -> str:
        """The weather of a day in a city."""
        word, look, advice = self.dice.evenly(facts.WEATHER)
        city = self.dice.evenly(facts.CITIES).name
        opening = self.dice.pick((f"Today it is {word} in {city}.", f"The weather in {city} is {word} today."))
        change = self.dice.pick(
            (
                "Tomorrow it will be warmer.",
                "Tomorrow the wind will change.",
                "In the evening the stars will come out.",
            )
        )
        return f"{opening} {look} {advice} {change}"

    def season(self) -> str:
        """What a season is."""
        name, what, more = self.dice.evenly(facts.SEASONS)
        return f"{name} is {what}. {more}"

    def capital(self) -> str:
        """The capital of a country."""
        country, capital = self.dice.evenly(facts.CAPITALS)
        city = next(city for city in facts.CITIES if city.name == capital)
        return f"The capital of {country} is {capital}. It is a {city.kind}. {city.sight} {city.people}"

    def fact(self) -> str:
        """A plain fact."""
        opening, rest = self.dice.evenly(facts.FACTS)
        return f"{opening} {rest}"

    def introduction(self) -> str:
        """Somebody says who they are."""
        name, job = self.dice.evenly(facts.GIRLS + facts.BOYS), self.dice.evenly(facts.JOBS)
        city, hobby = self.dice.evenly(facts.CITIES), self.dice.pick(facts.HOBBIES)
        article = "an" if job[0] in "aeiou" else "a"
        return (
            f"Hello, my name is {name}. I am {article} {job} and I live in {city.name}. {city.weather} "
            f"In the evening I like to {hobby}. {self.dice.pick(('What is your name?', 'It is nice to meet you.'))}"
        )

    def story(self) -> str:
        """A short story with a hero, a plot and an end."""
        return self.story_about(self.hero())

    def story_about(self, hero: Hero) -> str:
        """A short story about `hero`."""
        place, trait = self.dice.pick(facts.PLACES), self.dice.pick(facts.TRAITS)
        opening = self.dice.pick(
            (
                f"Once upon a time there was a {trait} {hero.kind} named {hero.name}.",
                f"There once was a {trait} {hero.kind} called {hero.name}.",
            )
        )
        home = f"{hero.name} lived {place}."
        ending = self.dice.pick(
            (
                f"That night {hero.name} slept well.",
                f"{hero.name} never forgot that day.",
                f"From that day on, {hero.name} was never lonely again.",
                f"And {hero.name} smiled all the way home.",
            )
        )
        return " ".join([opening, home, *self.dice.evenly(PLOTS)(self.dice, hero), ending])

    def hero(self) -> Hero:
        """A girl, a boy or an animal."""
        kind = self.dice.weighted((("girl", 2), ("boy", 2), ("animal", 1)))
        if kind == "girl":
            return Hero(self.dice.evenly(facts.GIRLS), "she", "her", "her", kind)
        if kind == "boy":
            return Hero(self.dice.evenly(facts.BOYS), "he", "him", "his", kind)
        return self.animal_hero(self.dice.evenly(facts.ANIMALS))

    def animal_hero(self, animal: facts.Animal) -> Hero:
        """An animal with a name of its own."""
        return Hero(self.dice.evenly(facts.PET_NAMES), "it", "it", "its", animal.name)

    def conversation(self) -> str:
        """One to three questions with their answers."""
        turns = self.dice.weighted(((1, 6), (2, 3), (3, 1)))
        return END.join(self.exchange() for _ in range(turns))

    def exchange(self) -> str:
        """One question with its answer."""
        makers: tuple[tuple[Callable[[], tuple[str, str]], int], ...] = (
            (self.ask_city, 6),
            (self.ask_animal, 6),
            (self.ask_story, 6),
            (self.ask_capital, 3),
            (self.ask_fact, 3),
            (self.ask_weather, 2),
            (self.ask_self, 3),
            (self.ask_unknown, 3),
        )
        question, answer = self.dice.weighted(makers)()
        return f"{QUESTION}{question}{ANSWER}{answer}"

    def ask_city(self) -> tuple[str, str]:
        """A question about a city."""
        city = self.dice.evenly(facts.CITIES)
        question = self.dice.pick(
            (
                f"Tell me about {city.name}.",
                f"What is {city.name} like?",
                f"Where is {city.name}?",
                f"What can I see in {city.name}?",
                f"What do you know about {city.name}?",
            )
        )
        return question, self.city_portrait(city)

    def ask_animal(self) -> tuple[str, str]:
        """A question about an animal."""
        animal = self.dice.evenly(facts.ANIMALS)
        question = self.dice.pick(
            (
                f"Tell me about {animal.plural}.",
                f"What is {animal.article} {animal.name}?",
                f"Where do {animal.plural} live?",
                f"What do {animal.plural} eat?",
            )
        )
        return question, self.animal_portrait(animal)

    def ask_story(self) -> tuple[str, str]:
        """A wish for a story, about an animal or about anybody."""
        if self.dice.chance(0.5):
            animal = self.dice.evenly(facts.ANIMALS)
            hero, about = self.animal_hero(animal), f" about {animal.article} {animal.name}"
        else:
            hero, about = self.hero(), ""
        question = self.dice.pick(
            (f"Tell me a story{about}.", f"Write a short story{about}.", f"Can you tell me a story{about}?")
        )
        return question, self.story_about(hero)

    def ask_capital(self) -> tuple[str, str]:
        """A question about a capital."""
        country, capital = self.dice.evenly(facts.CAPITALS)
        return f"What is the capital of {country}?", f"The capital of {country} is {capital}."

    def ask_fact(self) -> tuple[str, str]:
        """A question that a plain fact answers."""
        opening, rest = self.dice.evenly([fact for fact in facts.FACTS if fact[0].endswith(" is")])
        subject = opening.removesuffix(" is")
        return f"What is {subject[0].lower()}{subject[1:]}?", f"{opening} {rest}"

    def ask_weather(self) -> tuple[str, str]:
        """A question about the weather that a city usually has."""
        city = self.dice.evenly(facts.CITIES)
        return f"What is the weather like in {city.name}?", f"{city.weather} That is how {city.name} is."

    def ask_self(self) -> tuple[str, str]:
        """A greeting, or a question about the model."""
        return self.dice.evenly(
            (
                ("Hello!", "Hello! Ask me for a story, or about a city or an animal."),
                ("Hi.", "Hello! Ask me for a story, or about a city or an animal."),
                ("Who are you?", "I am a very small language model. I can tell short stories and a few facts."),
                ("What can you do?", "I can tell short stories, and I know a little about cities and animals."),
                ("How are you?", "I am well, thank you. Would you like to hear a story?"),
                ("Thank you!", "You are welcome."),
                ("Goodbye.", "Goodbye! Come back when you want another story."),
            )
        )

    def ask_unknown(self) -> tuple[str, str]:
        """A question that the model cannot answer."""
        question = self.dice.evenly(facts.UNKNOWN_QUESTIONS)
        return question, "I do not know that. Ask me for a story, or about a city or an animal."


def documents(seed: int) -> Iterator[str]:
    """The endless stream of documents that `seed` stands for."""
    storyteller = Storyteller(seed)
    while True:
        yield storyteller.document()


def main() -> None:
    """Prints some documents, an empty line between them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10, help="how many documents to print (default: %(default)s)")
    arguments = parser.parse_args()
    print("\n\n".join(itertools.islice(documents(arguments.seed), arguments.count)))


if __name__ == "__main__":
    main()
