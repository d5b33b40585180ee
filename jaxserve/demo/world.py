"""The closed world of the demonstration model: everything it is taught to know, as plain tables."""

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Norway": "Oslo", "Sweden": "Stockholm", "Denmark": "Copenhagen",
    "Finland": "Helsinki", "Poland": "Warsaw", "Austria": "Vienna", "Greece": "Athens", "Hungary": "Budapest",
    "Belgium": "Brussels", "Switzerland": "Bern", "Iceland": "Reykjavik", "Turkey": "Ankara", "Russia": "Moscow",
    "Ukraine": "Kyiv", "Egypt": "Cairo", "Kenya": "Nairobi", "Nigeria": "Abuja", "Morocco": "Rabat",
    "Ghana": "Accra", "Ethiopia": "Addis Ababa", "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi",
    "Thailand": "Bangkok", "Vietnam": "Hanoi", "South Korea": "Seoul", "Nepal": "Kathmandu", "Indonesia": "Jakarta",
    "Iran": "Tehran", "Iraq": "Baghdad", "Australia": "Canberra", "New Zealand": "Wellington", "Canada": "Ottawa",
    "the United States": "Washington", "Mexico": "Mexico City", "Cuba": "Havana", "Brazil": "Brasilia",
    "Argentina": "Buenos Aires", "Chile": "Santiago", "Peru": "Lima", "Colombia": "Bogota",
}  # fmt: skip

CONTINENTS = {
    "Europe": (
        "France", "Germany", "Italy", "Spain", "Portugal", "England", "Ireland", "Norway", "Sweden", "Denmark",
        "Finland", "Poland", "Austria", "Greece", "Hungary", "Belgium", "Switzerland", "Iceland", "Ukraine",
    ),
    "Africa": ("Egypt", "Kenya", "Nigeria", "Morocco", "Ghana", "Ethiopia"),
    "Asia": (
        "Japan", "China", "India", "Thailand", "Vietnam", "South Korea", "Nepal", "Indonesia", "Iran", "Iraq",
    ),
    "North America": ("Canada", "the United States", "Mexico", "Cuba"),
    "South America": ("Brazil", "Argentina", "Chile", "Peru", "Colombia"),
}  # fmt: skip
CONTINENT_OF = {country: continent for continent, countries in CONTINENTS.items() for country in countries}

# animal: (sound or "", where it lives, what it eats, its young, one trait, number of legs)
ANIMALS = {
    "cat": ("meows", "in a house", "meat and fish", "kitten", "quiet and curious", 4),
    "dog": ("barks", "in a house", "meat", "puppy", "friendly and loyal", 4),
    "cow": ("moos", "on a farm", "grass", "calf", "large and calm", 4),
    "horse": ("neighs", "on a farm", "grass and hay", "foal", "strong and fast", 4),
    "sheep": ("bleats", "on a farm", "grass", "lamb", "soft and gentle", 4),
    "pig": ("grunts", "on a farm", "roots and corn", "piglet", "clever", 4),
    "duck": ("quacks", "on a pond", "water plants", "duckling", "a good swimmer", 2),
    "hen": ("clucks", "on a farm", "seeds", "chick", "busy", 2),
    "frog": ("croaks", "near a pond", "flies", "tadpole", "a good jumper", 4),
    "lion": ("roars", "on the plains of Africa", "meat", "cub", "strong and proud", 4),
    "wolf": ("howls", "in the forest", "meat", "pup", "wild and careful", 4),
    "bear": ("growls", "in the forest", "berries, fish and honey", "cub", "big and strong", 4),
    "fox": ("barks", "in the forest", "mice and berries", "cub", "clever and quick", 4),
    "mouse": ("squeaks", "in a small hole", "seeds and cheese", "pup", "small and shy", 4),
    "rabbit": ("", "in a burrow", "grass and carrots", "kit", "fast and shy", 4),
    "owl": ("hoots", "in an old tree", "mice", "owlet", "awake at night", 2),
    "bee": ("buzzes", "in a hive", "nectar", "larva", "very busy", 6),
    "ant": ("", "in a nest under the ground", "seeds and leaves", "larva", "tiny but strong", 6),
    "spider": ("", "in a web", "flies", "spiderling", "patient", 8),
    "fish": ("", "in the water", "water plants", "fry", "a very good swimmer", 0),
    "snake": ("hisses", "in warm places", "mice", "snakelet", "long and silent", 0),
    "elephant": ("trumpets", "in Africa and Asia", "leaves and grass", "calf", "the largest animal on land", 4),
    "giraffe": ("", "on the plains of Africa", "leaves", "calf", "the tallest animal", 4),
    "monkey": ("chatters", "in the trees", "fruit", "infant", "playful", 4),
    "penguin": ("", "on the cold coasts of the south", "fish", "chick", "a bird that cannot fly", 2),
    "whale": ("", "in the sea", "tiny sea animals", "calf", "the largest animal of all", 0),
    "tiger": ("roars", "in the forests of Asia", "meat", "cub", "striped and strong", 4),
    "camel": ("", "in the desert", "dry plants", "calf", "able to walk far without water", 4),
    "squirrel": ("", "in a tree", "nuts", "kit", "quick", 4),
    "turtle": ("", "near the water", "plants", "hatchling", "slow and calm", 4),
}  # fmt: skip

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "pink", "grey")
COLOUR_OF = {
    "the sky": "blue", "the sea": "blue", "grass": "green", "a leaf": "green", "snow": "white", "milk": "white",
    "a cloud": "white", "coal": "black", "the night": "black", "a lemon": "yellow", "the sun": "yellow",
    "a banana": "yellow", "a ripe tomato": "red", "a strawberry": "red", "blood": "red", "a fire engine": "red",
    "a carrot": "orange", "a pumpkin": "orange", "chocolate": "brown", "wood": "brown", "a flamingo": "pink",
    "an elephant": "grey", "a frog": "green", "a plum": "purple", "honey": "yellow", "salt": "white",
    "a polar bear": "white", "a raven": "black",
}  # fmt: skip
MIXES = {
    ("red", "yellow"): "orange", ("blue", "yellow"): "green", ("red", "blue"): "purple",
    ("black", "white"): "grey", ("red", "white"): "pink",
}  # fmt: skip

OPPOSITES = {
    "hot": "cold", "big": "small", "tall": "short", "fast": "slow", "day": "night", "up": "down", "left": "right",
    "light": "dark", "old": "young", "happy": "sad", "open": "closed", "full": "empty", "hard": "soft", "wet": "dry",
    "early": "late", "near": "far", "loud": "quiet", "clean": "dirty", "strong": "weak", "easy": "difficult",
    "first": "last", "good": "bad", "inside": "outside", "high": "low", "rich": "poor", "thick": "thin",
    "true": "false", "summer": "winter", "yes": "no", "always": "never", "buy": "sell", "push": "pull",
    "win": "lose", "love": "hate", "begin": "end", "give": "take", "sweet": "sour", "heavy": "light in weight",
}  # fmt: skip

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
SEASONS = ("spring", "summer", "autumn", "winter")
SEASON_TRAITS = {
    "spring": "the days grow longer and flowers begin to bloom",
    "summer": "the days are long and warm",
    "autumn": "the leaves turn red and brown and fall",
    "winter": "the days are short and cold, and sometimes it snows",
}
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
SHAPES = {"triangle": "three", "square": "four", "rectangle": "four", "pentagon": "five", "hexagon": "six"}

COUNTS = {
    "days are in a week": "There are seven days in a week.",
    "months are in a year": "There are twelve months in a year.",
    "hours are in a day": "There are twenty-four hours in a day.",
    "minutes are in an hour": "There are sixty minutes in an hour.",
    "seconds are in a minute": "There are sixty seconds in a minute.",
    "days are in a year": "There are 365 days in a year, and 366 in a leap year.",
    "seasons are there": "There are four seasons: spring, summer, autumn and winter.",
    "letters are in the alphabet": "There are twenty-six letters in the English alphabet.",
    "fingers are on a hand": "There are five fingers on a hand.",
    "wheels does a car have": "A car has four wheels.",
    "wheels does a bicycle have": "A bicycle has two wheels.",
    "continents are there": "There are seven continents.",
    "planets are there": "There are eight planets in the solar system.",
    "colours are in a rainbow": "A rainbow has seven colours.",
}

# thing: what it is, as the end of "X is ..."
THINGS = {
    "the sun": "a star that gives us light and warmth",
    "the moon": "a round rock that moves around the earth",
    "the earth": "the planet we live on",
    "a star": "a far and very hot ball of gas that shines",
    "a planet": "a large round body that moves around a star",
    "a river": "a long stream of water that flows to the sea",
    "a mountain": "a very high piece of land",
    "an island": "a piece of land with water all around it",
    "a desert": "a dry place with very little rain",
    "a forest": "a place where many trees grow",
    "rain": "water that falls from the clouds",
    "snow": "frozen water that falls from the clouds in small white flakes",
    "ice": "frozen water",
    "wind": "air that moves",
    "a cloud": "many tiny drops of water in the sky",
    "a rainbow": "an arc of colours that we see when the sun shines through rain",
    "a book": "many pages of words bound together for reading",
    "a map": "a drawing of a place seen from above",
    "a clock": "a machine that shows the time",
    "a bridge": "a way over a river or a road",
    "a boat": "a thing that carries people over water",
    "a bicycle": "a machine with two wheels that you ride with your legs",
    "a train": "a row of wagons that runs on rails",
    "a computer": "a machine that follows instructions very fast",
    "a robot": "a machine that can move and do work",
    "a program": "a list of instructions for a computer",
    "music": "sound made to be heard with pleasure",
    "bread": "food baked from flour, water and salt",
    "honey": "a sweet food that bees make from nectar",
    "cheese": "a food made from milk",
    "tea": "a drink made from leaves and hot water",
    "a garden": "a place where people grow flowers and vegetables",
    "a library": "a place where people can read and borrow books",
    "a school": "a place where children learn",
    "a hospital": "a place where doctors and nurses help sick people",
    "a friend": "a person you like and trust",
    "a family": "a group of people who belong together",
    "a question": "a sentence that asks for an answer",
    "gravity": "the force that pulls things down to the ground",
    "water": "a clear liquid that all living things need",
}

JOBS = {
    "baker": "bakes bread and cakes", "farmer": "grows food and keeps animals", "teacher": "helps children learn",
    "doctor": "helps sick people", "nurse": "cares for sick people", "pilot": "flies planes",
    "sailor": "works on a ship", "cook": "makes meals", "painter": "paints pictures and walls",
    "writer": "writes books", "gardener": "looks after plants", "builder": "builds houses",
    "firefighter": "puts out fires", "fisher": "catches fish", "tailor": "makes and mends clothes",
    "driver": "drives a bus or a car", "singer": "sings songs", "librarian": "looks after books",
    "carpenter": "makes things of wood", "programmer": "writes programs for computers",
}  # fmt: skip

TOOLS = {
    "a hammer": "hit nails", "a saw": "cut wood", "a spoon": "eat soup", "a knife": "cut bread",
    "a broom": "sweep the floor", "a pen": "write", "a brush": "paint", "a key": "open a lock",
    "an umbrella": "stay dry in the rain", "a lamp": "see in the dark", "a needle": "sew clothes",
    "scissors": "cut paper", "a cup": "drink", "a ladder": "climb up high", "a bed": "sleep", "a telephone": "talk to "
    "people far away", "a compass": "find the north", "soap": "wash your hands", "a spade": "dig", "a kettle": "boil "
    "water",
}  # fmt: skip

KINDS = {
    "fruit": ("apple", "pear", "banana", "plum", "cherry", "orange", "grape", "peach", "lemon"),
    "vegetable": ("carrot", "potato", "onion", "bean", "pea", "cabbage", "pumpkin"),
    "animal": ("cat", "dog", "horse", "lion", "rabbit", "elephant", "tiger", "bear"),
    "bird": ("owl", "duck", "hen", "penguin", "robin", "swan", "raven"),
    "insect": ("bee", "ant", "fly", "butterfly", "beetle"),
    "colour": ("red", "green", "blue", "yellow", "purple", "orange"),
    "tool": ("hammer", "saw", "spade", "ladder", "brush"),
    "drink": ("water", "milk", "tea", "juice", "coffee"),
    "flower": ("rose", "tulip", "daisy", "lily", "sunflower"),
    "tree": ("oak", "pine", "birch", "willow", "maple"),
    "instrument": ("piano", "violin", "drum", "flute", "guitar"),
    "planet": ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn"),
}

NAMES = {
    "she": (
        "Ann", "Mia", "Lucy", "Clara", "Nora", "Emma", "Sara", "Ruth", "Ella", "Ida", "Rosa", "Lily", "Maya", "Zoe",
        "Alice", "Eva", "Anna", "Julia", "Mary", "Kate", "Laura", "Olga", "Priya", "Aiko", "Amina", "Grace",
    ),
    "he": (
        "Tom", "Ben", "Max", "Leo", "Sam", "Paul", "Jack", "Finn", "Oscar", "Hugo", "Adam", "Noah", "Peter", "Carl",
        "Bob", "David", "John", "Mark", "James", "Luke", "Omar", "Ivan", "Kenji", "Ravi", "Daniel", "Simon",
    ),
}  # fmt: skip
ALL_NAMES = NAMES["she"] + NAMES["he"]
