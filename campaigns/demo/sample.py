"""People who do not exist, for the demo: names in many scripts, addresses in `.example` (RFC 2606).

    python -m campaigns.demo.sample > campaigns/demo/recipients.csv

The same count gives the same list, and a longer one begins with the shorter one.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

__all__ = ["COLUMNS", "SAMPLE_SIZE", "sample", "write_csv"]

COLUMNS = ("email", "first_name", "last_name", "city", "points")
SAMPLE_SIZE = 2400
# The last one is an internationalised domain: it goes out as an A-label (RFC 5890).
_DOMAINS = ("post.example", "mail.example", "brief.example", "courrier.example", "почта.example")


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """Names of one language, each with how it is spelt in an address: `Name/ascii`."""

    first: str
    last: str
    cities: str


_ORIGINS = (
    _Origin(
        first="Zoë/zoe Jürgen/juergen Anneliese/anneliese Søren/soren Åsa/asa",
        last="Müller/mueller Groß/gross Weiß/weiss Ångström/angstrom Nørgård/norgard",
        cities="Köln Zürich Malmö",
    ),
    _Origin(
        first="Chloé/chloe Noël/noel Élodie/elodie José/jose Begoña/begona",
        last="Lefèvre/lefevre Núñez/nunez García/garcia D’Angelo/dangelo Brontë/bronte",
        cities="Orléans Málaga Besançon",
    ),
    _Origin(
        first="Łukasz/lukasz Zofia/zofia Jiří/jiri Şule/sule Çağla/cagla",
        last="Wiśniewski/wisniewski Dvořák/dvorak Öztürk/ozturk Szűcs/szucs Ionuț/ionut",
        cities="Łódź Plzeň İzmir",
    ),
    _Origin(
        first="Ольга/olga Дмитрий/dmitri Наталія/natalia Ђорђе/djordje Аліса/alisa",
        last="Иванова/ivanova Шевченко/shevchenko Петровић/petrovic Ёлкин/yolkin Коваль/koval",
        cities="Київ Београд Ереван",
    ),
    _Origin(
        first="Ελένη/eleni Γιώργος/giorgos Σοφία/sofia Νίκος/nikos Άννα/anna",
        last="Παπαδοπούλου/papadopoulou Ωνάσης/onassis Βασιλείου/vasileiou Ρήγας/rigas Δήμου/dimou",
        cities="Αθήνα Θεσσαλονίκη Πάτρα",
    ),
    _Origin(
        first="ליאור/lior מרים/miriam نور/nour فاطمة/fatima آرش/arash",
        last="כהן/cohen לוי/levi الحسن/alhassan منصور/mansour رضایی/rezaei",
        cities="חיפה القاهرة تهران",
    ),
    _Origin(
        first="अनन्या/ananya अर्जुन/arjun தமிழ்/tamil রবি/rabi సీత/sita",
        last="शर्मा/sharma पटेल/patel குமார்/kumar দাস/das రెడ్డి/reddy",
        cities="मुंबई சென்னை কলকাতা",
    ),
    _Origin(
        first="小明/xiaoming 美玲/meiling さくら/sakura 健太/kenta 지우/jiwoo",
        last="王/wang 陳/chen 田中/tanaka 佐藤/sato 김/kim",
        cities="北京 大阪 서울",
    ),
    _Origin(
        first="สมชาย/somchai მარიამ/mariam Արամ/aram Linh/linh አበበ/abebe",
        last="ใจดี/jaidee ბერიძე/beridze Սարգսյան/sargsyan Nguyễn/nguyen ተስፋዬ/tesfaye",
        cities="กรุงเทพฯ თბილისი Երևան",
    ),
    _Origin(
        first="Grace/grace Oluwaseun/oluwaseun ʻIolana/iolana Siobhán/siobhan Ada/ada",
        last="Hopper/hopper Adébáyò/adebayo Kealoha/kealoha O’Brien/obrien Lovelace/lovelace",
        cities="Gaillimh Ìbàdàn Honolulu",
    ),
)


def sample(count: int = SAMPLE_SIZE) -> Iterator[dict[str, str]]:
    """`count` rows with the keys of COLUMNS; every address is there once."""
    for number in range(1, count + 1):
        yield _person(number)


def write_csv(file: TextIO, count: int = SAMPLE_SIZE) -> None:
    """Write the rows as CSV with a header, as a spreadsheet would."""
    writer = csv.DictWriter(file, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sample(count))


def _person(number: int) -> dict[str, str]:
    turn, index = divmod(number, len(_ORIGINS))
    origin = _ORIGINS[index]
    first, first_ascii = _pick(origin.first, turn)
    last, last_ascii = _pick(origin.last, turn // 5 + turn)
    cities = origin.cities.split()
    return {
        "email": f"{first_ascii}.{last_ascii}.{number}@{_DOMAINS[number % 7 % len(_DOMAINS)]}",
        "first_name": first,
        "last_name": last,
        "city": cities[turn % len(cities)],
        "points": str(number * 37 % 1000),
    }


def _pick(names: str, turn: int) -> tuple[str, str]:
    choices = names.split()
    name, _, ascii_name = choices[turn % len(choices)].partition("/")
    return name, ascii_name


if __name__ == "__main__":
    with open(1, "w", encoding="utf-8", newline="", closefd=False) as output:
        write_csv(output)
