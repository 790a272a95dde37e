"""Units and currencies by their names. Case counts where it tells two units apart: mW is not MW."""

from __future__ import annotations

import re

# One row per unit: its symbols as written, then names that may be in any case.
_ROWS = """
mm | millimetre millimetres millimeter millimeters
cm | centimetre centimetres centimeter centimeters
m | metre metres meter meters
km Km KM | kilometre kilometres kilometer kilometers
in | inch inches
ft | foot feet
yd | yard yards
mi | mile miles
nm | nanometre nanometres nanometer nanometers
µm μm um | micrometre micrometres micrometer micrometers
m^2 m2 sqm | square_metre square_metres square_meter square_meters sq_m
km^2 km2 | square_kilometre square_kilometres square_kilometer square_kilometers sq_km
mi^2 mi2 | square_mile square_miles sq_mi
ft^2 ft2 sqft | square_foot square_feet sq_ft
cm^2 cm2 | square_centimetre square_centimetres square_centimeter square_centimeters sq_cm
m^3 m3 | cubic_metre cubic_metres cubic_meter cubic_meters
ha | hectare hectares
ac | acre acres
mg | milligram milligrams milligramme milligrammes
g | gram grams gramme grammes
kg Kg KG | kilogram kilograms kilogramme kilogrammes kilo kilos
t | tonne tonnes metric_ton metric_tons
lb lbs | pound pounds
oz | ounce ounces
ml mL | millilitre millilitres milliliter milliliters
cl cL | centilitre centilitres centiliter centiliters
l L | litre litres liter liters
gal | gallon gallons
ms | millisecond milliseconds
s sec secs | second seconds
min mins | minute minutes
h hr hrs | hour hours
d | day days
wk wks | week weeks
mo | month months
yr yrs | year years
% | percent per_cent pct
‰ | per_mille
°C | degree_celsius degrees_celsius degree_centigrade degrees_centigrade
°F | degree_fahrenheit degrees_fahrenheit
K | kelvin kelvins
° | degree degrees
km/h kph kmh | kilometres_per_hour kilometers_per_hour km_per_hour
mph | miles_per_hour
m/s | metres_per_second meters_per_second
kn kt kts | knot knots
W | watt watts
kW KW | kilowatt kilowatts
mW | milliwatt milliwatts
MW | megawatt megawatts
GW | gigawatt gigawatts
kWh | kilowatt_hour kilowatt_hours
V | volt volts
mV | millivolt millivolts
MV | megavolt megavolts
A | ampere amperes amp amps
mA | milliampere milliamperes milliamp milliamps
mAh | milliamp_hour milliamp_hours
Hz | hertz
kHz | kilohertz
mHz | millihertz
MHz | megahertz
GHz | gigahertz
b | bit bits
kb kbit | kilobit kilobits
kB KB | kilobyte kilobytes
Mb Mbit | megabit megabits
MB | megabyte megabytes
Gb Gbit | gigabit gigabits
GB | gigabyte gigabytes
Tb Tbit | terabit terabits
TB | terabyte terabytes
Pa | pascal pascals
kPa | kilopascal kilopascals
MPa | megapascal megapascals
mPa | millipascal millipascals
J | joule joules
kJ | kilojoule kilojoules
mJ | millijoule millijoules
MJ | megajoule megajoules
cal | calorie calories
kcal | kilocalorie kilocalories
N | newton newtons
dB | decibel decibels
MP | megapixel megapixels
px | pixel pixels
ly | light_year light_years
"""
# Signs that several currencies share stay apart from the codes: '$5' may not be '5 USD'.
_CURRENCIES = """
$ | dollar dollars
USD US$ | us_dollar us_dollars
€ EUR | euro euros
£
GBP |
¥
JPY | japanese_yen
CNY RMB | renminbi chinese_yuan
₹ INR | indian_rupee indian_rupees
₩ | won
KRW | south_korean_won
AUD A$ AU$ | australian_dollar australian_dollars
CAD C$ CA$ | canadian_dollar canadian_dollars
CHF | swiss_franc swiss_francs
"""


def _table(rows: str, prefix: str) -> tuple[dict[str, str], dict[str, str]]:
    symbols, names = {}, {}
    for row in rows.strip().splitlines():
        first, _, second = row.partition('|')
        unit = prefix + first.split()[0]
        symbols |= dict.fromkeys(first.split(), unit)
        names |= dict.fromkeys((name.replace('_', ' ') for name in second.split()), unit)
    return symbols, names


_SYMBOLS, _NAMES = _table(_ROWS, '')
_MONEY_SYMBOLS, _MONEY_NAMES = _table(_CURRENCIES, 'money ')
# what may stand before an amount, longest first
BEFORE = tuple(sorted(_MONEY_SYMBOLS, key=len, reverse=True))
_DEGREES = re.compile(r'(?:° ?|º ?|deg(?:rees?)? )([CF])(?![A-Za-z])')


def unit(text: str) -> str | None:
    """The unit that a cleaned text names: '' for no text, None for a text that is no known unit."""
    text = text.strip()
    if len(text) > 40:
        return None
    text = _DEGREES.sub(r'°\1', text.removesuffix('.'))
    if not text or text in _SYMBOLS:
        return _SYMBOLS.get(text, '')
    if text in _MONEY_SYMBOLS:
        return _MONEY_SYMBOLS[text]
    name = text.casefold().replace('-', ' ')
    return _NAMES.get(name, _MONEY_NAMES.get(name))
