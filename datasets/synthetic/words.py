"""Random sentences for espeak-ng: common words of ten languages and accents."""

import numpy as np

# espeak-ng's language name: words
WORDS = {
    "en-us": "the red house stands near a quiet river and my brother sees many small boats go by "
    "when evening comes we open both windows because warm air feels good maybe somebody will "
    "bring fresh bread from market before people leave again tomorrow",
    "en-gb-x-rp": "our garden has four old apple trees which give plenty of fruit every autumn so "
    "mother bakes pies while father paints that broken fence blue nobody knows why he never "
    "finished before winter",
    "en-gb-scotland": "five brave sailors came over cold water with maps of silver mountains they "
    "asked where roads begin but few could answer and fog moved slowly up from below",
    "de": "das kleine Boot fährt morgen früh über den breiten Fluss und meine Mutter bringt warme "
    "Suppe für alle Freunde weil wir abends oft Musik machen oder vom Sommer am Meer erzählen",
    "es": "mañana por la tarde vamos a buscar pan fresco para mi abuela porque vive cerca de un "
    "puente viejo donde pasan muchos barcos blancos cuando sube el agua",
    "fr": "demain matin nous allons prendre un petit bateau bleu pour voir la vieille ville et "
    "mon frère apporte du pain chaud avec une bonne soupe pendant que la pluie tombe",
    "it": "domani mattina prendiamo una piccola barca bianca per vedere il vecchio ponte e mia "
    "madre porta pane fresco con molta pazienza mentre fuori piove sopra la montagna",
    "nl": "morgenvroeg varen wij met een kleine boot over het brede water en mijn broer brengt "
    "vers brood mee omdat wij samen bij de oude brug willen eten",
    "pl": "jutro rano płyniemy małą łodzią przez szeroką rzekę a moja mama niesie ciepły chleb "
    "dla wszystkich bo bardzo lubimy stary most i muzykę",
    "pt-br": "amanhã de manhã vamos buscar um barco pequeno para ver a ponte velha e meu irmão "
    "leva pão quente porque muita gente gosta de música boa",
}  # fmt: skip
LANGUAGES = tuple(WORDS)


def sentence(language: str, rng: np.random.Generator) -> str:
    """Random sentence of 4 to 10 words of a language."""
    words = WORDS[language].split()
    chosen = rng.choice(len(words), size=int(rng.integers(4, 11)))
    return " ".join(words[i] for i in chosen) + "."
