"""The quickstart set's questions: everyday topics put into question forms. Written for this repository."""

TOPICS: dict[str, str] = {
    "Why do people enjoy {}?": "gardening, fishing, chess, camping, dancing, painting, board games, hiking, knitting, old "
    "films, street markets, cooking for friends, long train rides, puzzles, bird watching, singing in a choir, "
    "collecting stamps, reading novels, riding bicycles, summer festivals, pottery, swimming in lakes, tea, "
    "photography, quiet mornings, learning languages, walking dogs, jazz, baking bread, museums",
    "What is a {} used for?": "thermometer, compass, hammer, telescope, ladder, calendar, blender, whistle, magnet, "
    "lighthouse, passport, microscope, dictionary, wheelbarrow, backpack, stapler, kettle, tripod, helmet, "
    "sieve, funnel, umbrella, parachute, bridge, notebook, toolbox, greenhouse, life jacket, stopwatch, pulley",
    "Give me a tip for {}.": "sleeping well, saving money, packing a suitcase, writing a letter, learning a song, "
    "growing tomatoes, cooking rice, making new friends, staying calm before a test, keeping a kitchen clean, "
    "remembering names, getting up early, hosting a dinner, riding in the rain, taking better photos, studying "
    "history, using less water, training a puppy, drawing faces, giving a speech, buying fresh fish, "
    "planning a picnic, reading more books, cleaning windows, running a first race, choosing a gift, sharing a "
    "flat, fixing a bicycle, working from home, moving house",
    "What makes a good {}?": "teacher, friend, neighbour, breakfast, story, holiday, team, leader, garden, song, coffee, "
    "library, sandwich, pillow, map, park, kitchen knife, pair of shoes, speech, bakery, museum guide, birthday "
    "party, road trip, bus driver, soup, doctor, restaurant, logo, hotel, question",
    "How does a {} work?": "refrigerator, bicycle, candle, solar panel, piano, sailing boat, microwave, clock, toaster, "
    "hot air balloon, zip, vaccine, lock, battery, printer, water mill, guitar, vacuum cleaner, camera, wind "
    "turbine, traffic light, dishwasher, steam engine, lift, hearing aid, radio, thermos flask, fire alarm, seesaw, "
    "smoke detector",
    "What is the difference between {}?": "a lake and a river, a cat and a dog, tea and coffee, a village and a city, a "
    "violin and a cello, butter and margarine, weather and climate, a frog and a toad, a hill and a mountain, jam "
    "and honey, a poem and a song, a boat and a ship, a novel and a diary, rain and snow, a sofa and a bed, a fruit "
    "and a vegetable, a planet and a star, running and walking, a cake and a pie, a job and a hobby, a wolf and a "
    "fox, cotton and wool, a forest and a park, a bus and a tram, glass and plastic, bread and rice, a moth and a "
    "butterfly, a crocodile and a lizard, a plan and a goal, milk and cream",
    "Why is {} important?": "sleep, exercise, clean water, friendship, reading, honesty, music, recycling, history, "
    "breakfast, patience, teamwork, sunlight, public transport, a good education, fresh air, privacy, kindness, "
    "voting, rest, art, curiosity, healthy soil, first aid, listening, punctuality, saving energy, "
    "handwriting, safety at work, a balanced diet",
    "Describe {}.": "a rainy day, the ocean at night, a busy market, an old oak tree, a winter morning, a small village, a "
    "thunderstorm, a ripe peach, a desert, a crowded train, a quiet library, a summer evening, a playful kitten, "
    "fresh bread, a mountain path, a full moon, a school playground, a waterfall, a candle flame, a city at dawn, "
    "a field of sunflowers, an autumn forest, a frozen lake, a football match, a warm blanket, a rainbow, a "
    "lively street, a farm, a sandy beach, a foggy harbour",
    "How can I {}?": "save water at home, learn to swim, sleep better, cook pasta, become more patient, write a good story, "
    "make a paper plane, keep plants alive, improve my memory, relax after work, find a new hobby, eat more "
    "vegetables, stop biting my nails, make my room brighter, remember birthdays, train for a marathon, be a "
    "better listener, reduce waste, keep my desk tidy, plan a cheap trip, stay warm in winter, learn the guitar, "
    "clean a carpet, help my community, speak more clearly, make tea taste better, protect my skin in summer, start "
    "a small garden, save electricity, feel less lonely",
    "What happens when {}?": "ice melts, a volcano erupts, leaves change colour, we laugh, bread is baked, the sun sets, a "
    "seed grows, water boils, we dream, metal rusts, it snows, a balloon pops, bees visit a flower, we exercise, milk "
    "turns sour, a river floods, we sneeze, the tide comes in, lightning strikes, a caterpillar grows up, paper "
    "burns, we get hungry, birds fly south, sugar meets hot tea, the moon is full, we learn something "
    "new, a fire goes out, clouds get heavy, an egg is cooked, fruit gets too ripe",
    "What should I know about {}?": "owls, honey, glaciers, penguins, olive oil, earthquakes, whales, the violin, "
    "rice, deserts, bees, chess, the moon, chocolate, elephants, rivers, bamboo, spiders, cheese, turtles, "
    "coral reefs, wool, horses, pepper, mushrooms, trains, cactus plants, salt, dolphins, paper",
    "What is your advice for someone who {}?": "is new in town, wants to learn to cook, cannot sleep, is afraid of flying, "
    "has lost a key, wants to eat better, starts a new job, has too much to do, wants to run faster, misses home, "
    "often arrives late, wants to write a book, is learning to drive, has a cold, keeps forgetting things, plans "
    "a wedding, wants to save money, moves abroad, adopts a cat, gives a first talk, feels bored, wants to "
    "read more, paints a room, buys a used car, hikes alone, studies for an exam, grows herbs, has a noisy "
    "neighbour, wants to make friends, travels with children",
}


def all_questions() -> list[str]:
    """Every form filled with every topic, form by form; no question twice."""
    return [form.format(topic.strip()) for form, topics in TOPICS.items() for topic in topics.split(",")]
