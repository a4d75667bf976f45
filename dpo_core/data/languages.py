"""Which language a text may be in: told by its script and, within a script, by its most frequent words.

IFEval asks for answers in one of thirty languages; its own program takes langdetect, which draws random numbers and needs a
few hundred letters. Here the result is the same every time, and a text without evidence may be in every language of its
script. Frequent words: articles, prepositions, pronouns and forms of "to be", which hardly any sentence does without.
"""

import re
import unicodedata
from collections import Counter
from typing import get_args

from dpo_core.data.ifeval_arguments import Language

SCRIPTS: dict[str, tuple[str, ...]] = {
    "ARABIC": ("ar", "fa", "ur"),
    "BENGALI": ("bn",),
    "CYRILLIC": ("bg", "ru", "uk"),
    "DEVANAGARI": ("hi", "mr", "ne"),
    "GUJARATI": ("gu",),
    "GURMUKHI": ("pa",),
    "HANGUL": ("ko",),
    "HEBREW": ("he",),
    "KANA": ("ja",),
    "KANNADA": ("kn",),
    # Those without a code in IFEval are here so that a text in them is not taken for a neighbour.
    "LATIN": ("de", "en", "es", "fi", "fr", "it", "pl", "pt", "sw", "vi", "id", "nl", "ro", "sv", "tr"),
    "MALAYALAM": ("ml",),
    "TAMIL": ("ta",),
    "TELUGU": ("te",),
    "THAI": ("th",),
}
"""Script -> the languages that are told apart in it."""

FREQUENT: dict[str, str] = {
    "de": "der die das und ist nicht ein eine einen ich du wir sie es mit auf für von zu den dem im auch sich wie als aus",
    "en": "the of and to in is that it you for was on are with as be this have from or not by at we they his her an a i no",
    "es": "el la los las de que y en un una es por con para no se del al lo como más su muy pero está son este esta",
    "fi": "ja on ei se että oli olen ovat mutta kun niin hän minä sinä tämä myös kuin joka ole mitä voi sen nyt jos",
    "fr": "le la les de des et est un une que qui dans pour pas vous nous je il elle sur avec ce sont au plus du par ne",
    "it": "il lo gli nella della di che e è un una per non con del sono alla nei perché si come anche più questo ma ho dei",
    "pl": "i w nie na się z do to że jest jak o po co ale od za tak czy dla są przez być który już tylko mam oraz",
    "pt": "o a os as de que e em um uma é por com para não se do da no na mais como mas ao você são foi ele seu muito",
    "sw": "ya na wa kwa ni katika za la hii kuwa kama si hiyo watu yake pia mimi wewe sana lakini au cha vya ili hapa",
    "vi": "là và của có không một những được người trong cho các với này để tôi bạn đã khi từ ra rất nhiều như cũng",
    "id": "yang dan di ini itu dengan untuk tidak dari dalam akan pada juga saya ada bisa adalah ke karena oleh",
    "nl": "de het een en van is dat niet op te zijn met voor die aan er ook als maar om bij ik je wij heeft naar",
    "ro": "și în de la nu este o un cu pe care mai din pentru sunt ce că sau se au fost dar am ca",
    "sv": "och att det som en på är av för med den till inte har de om ett men jag var så från kan vi",
    "tr": "bir ve bu için da de ile çok ne gibi daha ben o var mi olarak sonra kadar değil olan ama her",
    "bg": "и в не на че с как това по но от за той тя те е са се да съм като или си ще към беше може",
    "ru": "и в не на что с как это по но из от за у он она они был для так же его к бы все я мы вы или то",
    "uk": "і в не на що з як це та до від для є по але у він вона вони бути був була або ми ви за я й",
    "ar": "في من على إلى أن هذا هذه التي الذي كان مع لا ما هو هي عن كل أو و لم إن بين",
    "fa": "در به از که این را با است برای آن یک می های هم بر شد تا و بود ما من شما خود",
    "ur": "کے میں ہے کی اور سے کا کو پر یہ نہیں ہیں نے وہ ایک بھی کہ تھا ہم آپ اس",
    "hi": "है में के की और को से का यह पर नहीं हैं एक ने हो कि वह भी था मैं हम इस लिए",
    "mr": "आहे आणि हे ते या नाही होते एक मी आहेत तो ती पण च्या मध्ये साठी काही की तुम्ही आम्ही",
    "ne": "छ र को मा हो छन् यो पनि लाई भएको गर्न छैन म तपाईं हामी एक थियो ले बाट गर्छ",
}
OWN_LETTERS: dict[str, str] = {
    "de": "ß",
    "es": "ñ¿¡",
    "pl": "łąęśżźćń",
    "pt": "ãõ",
    "ro": "țș",
    "tr": "ığş",
    "vi": "ơưđạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ",
    "bg": "",
    "ru": "ыэё",
    "uk": "їєґі",
    "fa": "پچژ",
    "ur": "ٹڈڑںےہ",
    "mr": "ळ",
}
_WORDS = {language: frozenset(words.split()) for language, words in FREQUENT.items()}
_BETWEEN = re.compile(r"[\s\d.,;:!?()\[\]{}<>*_#/\\|\"'’‘“”«»„…।۔،؟؛\-–—]+")
_KANA_OF_JAPANESE = 0.05  # of letters: Japanese has kana in every sentence, Chinese none
LONGEST_CHARACTERS = 20_000  # of an answer that are looked at; languages show within a paragraph


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "").partition(" ")[0]
    return "KANA" if name in ("HIRAGANA", "KATAKANA") else name


def possible_languages(text: str) -> frozenset[str]:
    """Return the codes of the languages that ``text`` may be in; none for a script that is not known.

    A text without letters, and one without any frequent word of its script's languages, may be in several: there is no
    evidence against them.
    """
    text = text[:LONGEST_CHARACTERS]
    scripts = Counter(_script(letter) for letter in text if letter.isalpha())
    if not scripts:
        return frozenset(get_args(Language))
    script = scripts.most_common(1)[0][0]
    if script == "CJK" and scripts["KANA"] >= _KANA_OF_JAPANESE * scripts.total():
        script = "KANA"
    languages = SCRIPTS.get(script, ())
    if len(languages) < 2:
        return frozenset(languages)
    words = _BETWEEN.split(text.lower())
    found = {
        language: sum(
            (word in _WORDS[language]) + any(letter in OWN_LETTERS.get(language, "") for letter in word)
            for word in words
        )
        for language in languages
    }
    most = max(found.values())
    return frozenset(language for language, number in found.items() if number == most)
