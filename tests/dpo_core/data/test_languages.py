"""Which language a text may be in."""

from typing import get_args

import pytest

from dpo_core.data.ifeval_arguments import Language
from dpo_core.data.languages import possible_languages

# One sentence in each language that IFEval asks for: bread rises because the yeast makes gas, or about as much.
SENTENCES = {
    "ar": "يرتفع الخبز لأن الخميرة تنتج الغاز في هذا العجين.",
    "bg": "Хлябът се надига, защото маята прави газ и това е добре.",
    "bn": "খামির গ্যাস তৈরি করে বলে রুটি ফুলে ওঠে।",
    "de": "Das Brot geht auf, weil die Hefe Gas bildet.",
    "en": "The bread rises because yeast makes gas in it.",
    "es": "El pan sube porque la levadura produce gas en la masa.",
    "fa": "نان ور می‌آید چون مخمر در خمیر گاز تولید می کند و این خوب است.",
    "fi": "Leipä nousee, koska hiiva tekee kaasua ja se on hyvä.",
    "fr": "Le pain lève parce que la levure produit du gaz dans la pâte.",
    "gu": "યીસ્ટ ગેસ બનાવે છે તેથી રોટલી ફૂલે છે.",
    "he": "הלחם תופח כי השמרים יוצרים גז.",
    "hi": "रोटी फूलती है क्योंकि खमीर गैस बनाता है।",
    "it": "Il pane cresce perché il lievito produce gas nella pasta.",
    "ja": "酵母がガスを作るので、パンは膨らみます。",
    "kn": "ಯೀಸ್ಟ್ ಅನಿಲವನ್ನು ಮಾಡುವುದರಿಂದ ಬ್ರೆಡ್ ಉಬ್ಬುತ್ತದೆ.",
    "ko": "효모가 가스를 만들기 때문에 빵이 부풀어 오릅니다.",
    "ml": "യീസ്റ്റ് വാതകം ഉണ്ടാക്കുന്നതിനാൽ റൊട്ടി പൊങ്ങുന്നു.",
    "mr": "यीस्ट वायू तयार करते आणि पाव फुगतो हे चांगले आहे.",
    "ne": "खमिरले ग्यास बनाउँछ र रोटी फुल्छ, यो राम्रो हो।",
    "pa": "ਖਮੀਰ ਗੈਸ ਬਣਾਉਂਦਾ ਹੈ ਇਸ ਲਈ ਰੋਟੀ ਫੁੱਲਦੀ ਹੈ।",
    "pl": "Chleb rośnie, bo drożdże wytwarzają gaz w cieście.",
    "pt": "O pão cresce porque o fermento produz gás na massa.",
    "ru": "Хлеб поднимается, потому что дрожжи выделяют газ, и это хорошо.",
    "sw": "Mkate huinuka kwa sababu chachu hutoa gesi katika unga na maji.",
    "ta": "ஈஸ்ட் வாயுவை உருவாக்குவதால் ரொட்டி உப்புகிறது.",
    "te": "ఈస్ట్ వాయువును తయారు చేయడం వల్ల రొట్టె పొంగుతుంది.",
    "th": "ขนมปังฟูเพราะยีสต์สร้างก๊าซ",
    "uk": "Хліб піднімається, бо дріжджі виділяють газ, і це добре.",
    "ur": "روٹی پھولتی ہے کیونکہ خمیر گیس بناتا ہے۔",
    "vi": "Bánh mì nở vì men tạo ra khí trong bột.",
}


@pytest.mark.parametrize("language", get_args(Language))
def test_a_sentence_in_each_language(language: str) -> None:
    assert possible_languages(SENTENCES[language]) == {language}


@pytest.mark.parametrize("language", ["bg", "de", "en", "es", "fi", "fr", "it", "pl", "pt", "ru", "uk", "vi"])
def test_capitals_change_nothing(language: str) -> None:
    assert possible_languages(SENTENCES[language].upper()) == {language}


@pytest.mark.parametrize(
    "text", ["Het brood is niet van de bakker.", "酵母产生气体所以面包会膨胀。", "Brödet är från en ugn."]
)
def test_a_neighbour_is_not_taken_for_one_of_them(text: str) -> None:
    assert not possible_languages(text) & set(get_args(Language))


@pytest.mark.parametrize("text", ["A banana.", "Yes. No.", "I'M LATE", "No, my a.", "i"])
def test_a_short_answer_in_english_may_be_such(text: str) -> None:
    """Its only frequent word is one of other languages, too."""
    assert "en" in possible_languages(text)


def test_without_evidence_every_language_of_the_script_is_possible() -> None:
    assert {"en", "de", "vi"} < possible_languages("Hello world")
    assert "ru" not in possible_languages("Hello world")
    assert possible_languages("42!") == set(get_args(Language))
