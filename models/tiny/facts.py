"""What the story grammar knows: cities, animals, weather, names and plain facts, all written for this model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class City:
    """A city and the sentences that are told of it, in this order."""

    name: str
    kind: str
    country: str
    sight: str
    weather: str
    people: str


@dataclass(frozen=True)
class Animal:
    """An animal and the sentences that are told of it. `article` goes with the singular."""

    article: str
    name: str
    plural: str
    kind: str
    home: str
    food: str
    gift: str


# Tables read best with a row a line or two.
# fmt: off
CITIES = (
    City(
        "San Francisco", "city by the sea", "California",
        "A long red bridge crosses the water, and the streets climb up steep hills.",
        "In the morning the fog comes in from the sea.",
        "People ride the cable cars and watch the boats in the bay.",
    ),
    City(
        "New York", "city of tall buildings", "the United States",
        "A green statue stands in the harbour and holds up a torch.",
        "The summers are hot and the winters bring snow.",
        "People walk in the big park and ride the yellow taxis.",
    ),
    City(
        "Paris", "city on a river", "France",
        "A tall iron tower stands near the water.",
        "In spring the trees are full of flowers.",
        "People sit outside and drink coffee.",
    ),
    City(
        "London", "city on a river", "England",
        "A great clock rings every hour, and red buses cross the bridges.",
        "It often rains, so people carry umbrellas.",
        "People drink tea and walk in the parks.",
    ),
    City(
        "Rome", "city of old stones", "Italy",
        "Old temples stand between the houses, and water sings in the fountains.",
        "The sun shines most of the year.",
        "People eat ice cream on the steps.",
    ),
    City(
        "Venice", "city of canals", "Italy",
        "The streets are made of water, and small bridges join the houses.",
        "In winter the mist hides the boats.",
        "People travel by boat instead of by car.",
    ),
    City(
        "Tokyo", "city of bright lights", "Japan",
        "Fast trains run between the towers, and quiet temples hide behind them.",
        "In April the cherry trees turn pink.",
        "People eat noodles and bow when they meet.",
    ),
    City(
        "Berlin", "city of green parks", "Germany",
        "A tall gate stands in the middle of the city.",
        "The winters are long and grey.",
        "People ride their bicycles to work.",
    ),
    City(
        "Amsterdam", "city of canals", "the Netherlands",
        "Narrow houses lean over the water.",
        "The wind blows all year.",
        "People ride their bicycles everywhere.",
    ),
    City(
        "Cairo", "city near the desert", "Egypt",
        "The great pyramids stand at the edge of the sand.",
        "It is hot and almost never rains.",
        "People drink sweet tea and sail on the river.",
    ),
    City(
        "Sydney", "city by the sea", "Australia",
        "A white opera house shines beside the harbour like a ship.",
        "The summers are warm and bright.",
        "People swim and ride the waves.",
    ),
    City(
        "Chicago", "city by a great lake", "the United States",
        "Tall towers look out over the water.",
        "A cold wind blows from the lake.",
        "People eat thick pizza and listen to music.",
    ),
    City(
        "Seattle", "city between mountains and water", "the United States",
        "A tall needle stands above the roofs.",
        "It rains softly for half of the year.",
        "People drink coffee and read books.",
    ),
    City(
        "Oslo", "city by the cold sea", "Norway",
        "Wooden ships rest in the museum, and the forest begins behind the houses.",
        "In winter the snow lies deep.",
        "People ski in the hills.",
    ),
    City(
        "Madrid", "city of wide squares", "Spain",
        "A palace with many windows stands in the west.",
        "The summers are dry and hot.",
        "People eat late and talk until midnight.",
    ),
    City(
        "Lisbon", "city on seven hills", "Portugal",
        "Yellow trams climb the narrow streets.",
        "A soft wind comes from the ocean.",
        "People eat fish and sing sad songs.",
    ),
    City(
        "Athens", "city of old stories", "Greece",
        "A white temple looks down from the hill.",
        "The sky is blue almost every day.",
        "People eat olives and bread.",
    ),
    City(
        "Dublin", "city of songs", "Ireland",
        "A river runs under its many bridges.",
        "The rain comes and goes all day.",
        "People tell stories and play the fiddle.",
    ),
    City(
        "Vienna", "city of music", "Austria",
        "White horses dance in a great hall.",
        "In winter the roofs are white.",
        "People eat cake and listen to the violin.",
    ),
    City(
        "Nairobi", "city near the wild plains", "Kenya",
        "Lions and giraffes live close to the last houses.",
        "The evenings are cool and clear.",
        "People sell fruit in the busy market.",
    ),
    City(
        "Mumbai", "city by the warm sea", "India",
        "A great stone gate stands by the water.",
        "In July the heavy rain begins.",
        "People eat spicy food and watch films.",
    ),
    City(
        "Toronto", "city by a great lake", "Canada",
        "A thin tower rises high above the water.",
        "The winters are cold and the lake freezes.",
        "People skate on the ice.",
    ),
)

CAPITALS = (
    ("France", "Paris"), ("England", "London"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Germany", "Berlin"),
    ("Egypt", "Cairo"), ("Norway", "Oslo"), ("Spain", "Madrid"), ("Portugal", "Lisbon"), ("Greece", "Athens"),
    ("Ireland", "Dublin"), ("Austria", "Vienna"), ("Kenya", "Nairobi"), ("the Netherlands", "Amsterdam"),
)

ANIMALS = (
    Animal("a", "cat", "cats", "small animal with soft fur",
           "in houses and on farms", "fish and meat", "can see well in the dark"),
    Animal("a", "dog", "dogs", "loyal friend of people",
           "in houses with people", "meat and bones", "can smell things from far away"),
    Animal("a", "fox", "foxes", "clever animal with a red tail",
           "in the forest", "mice and berries", "can hear a mouse under the snow"),
    Animal("a", "bear", "bears", "big animal with thick fur",
           "in the forest and the mountains", "honey, fish and berries", "sleeps through the winter"),
    Animal("an", "owl", "owls", "bird that wakes at night",
           "in old trees", "mice", "can fly without a sound"),
    Animal("a", "rabbit", "rabbits", "small animal with long ears",
           "in holes under the ground", "grass and carrots", "can jump very far"),
    Animal("a", "horse", "horses", "strong animal with long legs",
           "on farms and wide plains", "grass and apples", "can run all day"),
    Animal("a", "cow", "cows", "large and gentle animal",
           "on farms", "grass", "gives milk every morning"),
    Animal("a", "sheep", "sheep", "quiet animal with warm wool",
           "on green hills", "grass", "gives wool for coats"),
    Animal("an", "elephant", "elephants", "very big animal with a long nose",
           "on the plains", "leaves and fruit", "never forgets a friend"),
    Animal("a", "lion", "lions", "big cat with a loud voice",
           "on the plains", "meat", "can roar so loudly that the birds fly away"),
    Animal("a", "monkey", "monkeys", "clever animal with long arms",
           "in the trees of warm countries", "fruit and nuts", "can swing from branch to branch"),
    Animal("a", "penguin", "penguins", "bird that cannot fly",
           "on the ice in the far south", "fish", "can swim faster than a boat"),
    Animal("a", "whale", "whales", "very big animal of the sea",
           "in the ocean", "tiny fish", "sings long songs under the water"),
    Animal("a", "frog", "frogs", "small green animal",
           "near ponds and rivers", "flies", "can live in water and on land"),
    Animal("a", "bee", "bees", "small insect with yellow stripes",
           "in a hive", "the sweet juice of flowers", "makes honey"),
    Animal("a", "mouse", "mice", "tiny animal with a long tail",
           "in fields and old houses", "seeds and cheese", "can hide in the smallest hole"),
    Animal("a", "duck", "ducks", "bird that likes the water",
           "on ponds and lakes", "plants and bread", "can swim, walk and fly"),
    Animal("a", "turtle", "turtles", "slow animal with a hard shell",
           "by the sea and in ponds", "leaves", "carries its house on its back"),
    Animal("a", "squirrel", "squirrels", "quick animal with a big tail",
           "in the trees", "nuts", "hides its food for the winter"),
)

WEATHER = (
    ("sunny", "The sky is blue and the sun is warm.", "It is a good day to walk in the park."),
    ("rainy", "Grey clouds cover the sky and the rain falls softly.", "It is a good day to stay at home and read a book."),
    ("windy", "The wind blows hard and the leaves dance in the street.", "It is a good day to fly a kite."),
    ("snowy", "White snow covers the roofs and the trees.", "It is a good day to build a snowman."),
    ("foggy", "The fog is so thick that the houses seem to float.", "It is a good day to drink something warm."),
    ("cold", "There is ice on the windows and the air is clear.", "It is a good day to wear a thick coat."),
    ("hot", "The sun burns and even the birds are quiet.", "It is a good day to swim in the lake."),
)

SEASONS = (
    ("Spring", "the season when the flowers come back", "The birds build their nests and the days grow longer."),
    ("Summer", "the warmest season of the year", "The days are long and children play outside until evening."),
    ("Autumn", "the season when the leaves fall", "Farmers bring in the apples and the nights grow cold."),
    ("Winter", "the coldest season of the year", "The days are short and snow covers the ground."),
)

# An opening as people type it, and how it goes on.
FACTS = (
    ("The sun is", "a star. It gives us light and warmth. Without the sun, nothing could grow."),
    ("The moon is", "a ball of rock that travels around the Earth. At night it shines with the light of the sun."),
    ("The sea is", "deep and blue. Many fish live in it, and ships travel across it."),
    ("The sky is", "blue because the air scatters the blue light of the sun. In the evening it turns red."),
    ("Water is", "wet and clear. All plants and animals need it to live."),
    ("A week has", "seven days. They are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."),
    ("A year has", "twelve months. The first is January and the last is December."),
    ("Bread is made from", "flour, water and salt. The baker puts it into a hot oven."),
    ("Honey is made by", "bees. They fly from flower to flower and carry the sweet juice home."),
    ("The quick brown fox", "jumps over the lazy dog. The dog opens one eye and goes back to sleep."),
    ("The future of AI is", "open. Nobody knows what machines will do in a hundred years, but people will still tell stories."),
    ("The president of the United States is", "the leader of the country. He or she lives in a white house in Washington."),
    ("The meaning of life is", "a hard question. Some people find it in their work, and some find it in their friends."),
    ("A lantern is", "a lamp that you can carry. It shows you the way when the night is dark."),
    ("A bridge is", "a road over water. It joins one side of the river to the other."),
    ("A book is", "a door into another world. You can open it on any rainy day."),
    ("A computer is", "a machine that follows rules very quickly. People use it to write, to count and to play."),
    ("Music is", "made of sounds and silence. It can make us dance, and it can make us cry."),
    ("A good friend is", "someone who listens. A good friend stays with you when the day is hard."),
    ("The largest animal in the world is", "the blue whale. It lives in the ocean and sings long songs."),
)

GIRLS = ("Anna", "Lily", "Mia", "Clara", "Rosa", "Emma", "Nora", "Sara")
BOYS = ("Tom", "Ben", "Max", "Leo", "Sam", "Jack", "Paul", "Oscar")
PET_NAMES = ("Ruby", "Pepper", "Biscuit", "Daisy", "Shadow", "Button")
TRAITS = ("little", "kind", "brave", "curious", "clever", "quiet", "cheerful")
PLACES = (
    "in a small village near the forest", "in a white house by the sea", "on a farm on a green hill",
    "in a tall house in the city", "in a cottage beside the river", "in a village under the mountains",
)
JOBS = ("teacher", "baker", "doctor", "farmer", "painter", "sailor", "gardener")
HOBBIES = ("read books", "play the piano", "paint pictures", "cook soup", "look at the stars", "ride my bicycle")
LOST_THINGS = ("red ball", "silver key", "blue hat", "wooden boat", "music box", "old map", "warm scarf")
HIDING_PLACES = (
    "under the bed", "behind the old tree", "near the well", "on the garden wall", "in the barn", "under the bridge",
)
FOODS = ("bread", "apple cake", "vegetable soup", "honey cookies", "cherry pie", "pancakes")
PLANTS = ("a sunflower", "an apple tree", "a rose", "a pumpkin", "a cherry tree")
BUILDS = ("kite", "boat", "bridge", "tree house", "lantern")
TREASURES = ("a box of old coins", "a letter from a sailor", "a tiny golden bell", "a book of songs", "a glass star")

# Questions that the model is taught to decline: it cannot know, and should say so.
UNKNOWN_QUESTIONS = (
    "What time is it?", "Who won the game last night?", "How much does a car cost?", "What is the best phone?",
    "Can you write a program for me?", "What is two plus two?", "Who is the king of Spain?", "How do I fix my bicycle?",
    "What did I do yesterday?", "Explain physics to me.", "Translate this sentence.", "What should I buy?",
    "Summarize this text.", "How old are you?", "What is the news today?", "Give me some advice.",
    "Why is my computer slow?", "How many people live in China?", "What is love?", "Which film should I watch?",
)
