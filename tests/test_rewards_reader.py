"""What the reader makes of notation, prose and hedges: a table of answers that are right, and of those that are
not paid."""

from __future__ import annotations

import pytest

from reward_fns import compute_score, sources

GSM8K, MATH, SAT, GEOQA = "openai/gsm8k", "lighteval/MATH", sources.SAT, sources.GEOQA_TRAIN


def right(source, gold, text, **settings) -> bool:
    result = compute_score(source, text, gold, **settings)
    assert result["killed"] == 0
    return result["acc"] == 1


GSM8K_RIGHT = [
    ("18", "\\boxed{18}\n</think>\n\nThe answer is $\\boxed{18}$"),
    ("18", "\\boxed{17} is what I had; it has to be \\boxed{18}"),
    ("18", "\\boxed{17}. Wait, that is wrong. \\boxed{18}"),
    ("18", "\\boxed{18}\n\n\\boxed{18}"),
    ("18", "I get \\boxed{17}. No: \\boxed{18}"),
    ("18", "First \\boxed{9}, so the total is \\boxed{18}"),
    ("42", "#### 42\n\n#### Check"),
    ("42", "#### 42\n\n#### Verification of the result"),
    ("18", "#### 1. Count the eggs\n#### 2. Multiply by the price\nso it is \\boxed{18}"),
    ("18", "#### Step 1: count 16 eggs\n#### Step 2: multiply\n\\boxed{18}"),
    ("18", "#### Step 1: count\n#### 18"),
    ("18", "### Final Answer\n#### Answer\n18"),
    *[
        ("18", mark.replace("?", answer))
        for mark in ("#### ?", "so \\boxed{?}.")
        for answer in (
            "\\$18", "x = 18", "Answer: 18", "(18)", "\\(18\\)", "USD 18", "$18$", "18 USD", "EUR 18", "18 €", "£18",
            "\\text{Total: }18", "The answer is 18", "18 dollars", "18\\text{ eggs per day}", "**18**", "\\mathbf{18}",
            "18.", "18,", "\\underline{18}", "{18}", "\\,18", "18 (eggs)", "\\text{18}", "= 18", "9 + 9 = 18", "36/2",
            "\\fbox{18}", "18.0", "+18", "18\\%", "18\\ \\text{miles/hour}", "\u200918", "\\(\\boxed{18}\\)",
        )
    ],
    ("1800", "#### \\textbf{1800}"),
    ("0.5", "#### \\frac12"),
    ("0.5", "\\boxed{\\frac12}"),
    ("0.5", "#### ½"),
    ("1.5", "#### 1½"),
    ("1.5", "\\boxed{1\\frac{1}{2}}"),
    ("1800", "#### 1\\,800"),
    ("1800", "#### 1 800"),
    ("1800", "#### 1\u202f800"),
    ("1800", "#### 1{,}800"),
    ("1800", "#### 1,\\!800"),
    ("1800000", "#### 1'800'000"),
    ("1800", "#### 1.8\\times10^3"),
    ("1800", "#### 1.8 × 10³"),
    ("1800", "#### 1.8e3"),
    ("1800", "#### 1.8 x 10^3"),
    ("1800", "\\boxed{\\text{Total: }1800}"),
    ("18000", "#### 18 thousand"),
    ("18000", "#### 18k"),
    ("18000", "#### $18K"),
    ("1000000", "#### 1 million dollars"),
    ("24", "#### 2 dozen"),
    ("80", "#### 100 - 20 = 80"),
    ("18", "\\boxed{17} was wrong, it's \\boxed{18}"),
    ("18", "\\boxed{17}? Hmm, \\boxed{18}."),
    ("18", "Scratch that \\boxed{17}; the right one: \\boxed{18}"),
    ("18", "\\boxed{17}, or rather \\boxed{18}"),
    ("42", "#### 42 <|endoftext|>"),
    ("42", "#### 42</s>"),
    ("42", "#### 1) Add the eggs\n#### 2) Sell\n#### 42"),
    ("21", "\\boxed{twenty-one}"),
    ("21", "\\boxed{\\text{twenty-one eggs}}"),
    ("-5", "#### –5"),
    ("-5", "#### minus 5"),
    ("-5", "#### negative 5"),
    ("18", "#### not 20 but 18"),
    *[
        ("18", f"so \\boxed{{{answer}}}")
        for answer in ("C\\$18", "'18'", '"18"', "Rs. 18", "18 (eighteen)", "She earns 18", "18 each", "18 hrs", "₹18")
    ],
    ("1800", "\\boxed{1{\\,}800}"),
]  # fmt: skip
GSM8K_WRONG = [
    ("18", "\\boxed{1} or \\boxed{18}"),
    ("18", "\\boxed{17}, \\boxed{18}"),
    ("18", "\\boxed{17} and \\boxed{18}"),
    ("18", "$\\boxed{17}$ / $\\boxed{18}$"),
    ("18", "\\boxed{17}\n\\boxed{18}"),
    ("18", "\\boxed{18} eggs or \\boxed{19} eggs"),
    ("17", "\\boxed{17}\n</think>\n\nThe answer is $\\boxed{18}$"),
    ("2", "#### 1. Count the eggs\n#### 2. Multiply by the price\nso it is \\boxed{18}"),
    ("18", "\\boxed{18} \\boxed{}"),
    ("18", "\\boxed{18} and so \\boxed{1"),
    ("18", "The answer is not \\boxed{18}"),
    *[
        ("18", mark.replace("?", answer))
        for mark in ("#### ?", "so \\boxed{?}")
        for answer in (
            "18 or 20", "20 or 18", "18 thousand", "18k", "18 million", "18e3", "18 \\times 2", "18!", "18 * 1",
                "18 / 0",
            "not 18", "18, 20", "18 and 20", "18 to 20", "18-20", "18–20", "between 17 and 18", "18?20", "18 dozen",
            "18^2", "\\sqrt{18}", "18x", "18 + 0", "9 + 9", "2 \\cdot 9", "18 = 18 = 20", "x", "\\pm 18", "{18, 19}",
            "(18, 18)", "18:00", "18\\frac{1}{2}", "maybe 18", "at least 18", "more than 18", "18 20", "none", "18/20",
            "18.5.1", "1818", "\\{18\\}\\{19\\}", "18 hundred", "18; 19", "18|19", "18 & 19", "１８",
        )
    ],
    ("1", "#### 1 800"),
    ("1", "#### 1 million"),
    ("1", "#### 1,800"),
    ("18", "(a) \\boxed{17} (b) \\boxed{18}"),
    ("18", "\\boxed{17} alternatively \\boxed{18}"),
    ("18", "\\boxed{17}. Otherwise, \\boxed{18}"),
    ("18", "it is \\boxed{17} or it is \\boxed{18}"),
    ("18", "#### not 18 but 20"),
    ("18", "#### 18 squared"),
    ("18", "#### 18 factorial"),
    ("20", "\\boxed{twenty-one}"),
    ("18", "\\boxed{eighteen or twenty}"),
    ("1800", "#### 1,80"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "text"), GSM8K_RIGHT)
def test_gsm8k_right(gold, text):
    assert right(GSM8K, gold, text)


@pytest.mark.parametrize(("gold", "text"), GSM8K_WRONG)
def test_gsm8k_wrong(gold, text):
    assert not right(GSM8K, gold, text)


# ---- mathematics: boxed answers --------------------------------------------------------------------------------

MATH_RIGHT = {
    "32,\\! 349": ["32349", "32,349", "32 349", "32\\,349", "32{,}349", "32,\\!349", "32\\;349", "3.2349\\times10^4"],
    "11,\\! 111,\\! 111,\\! 100": ["11111111100", "11,111,111,100", "11,\\! 111,\\! 111,\\! 100",
        "11\\,111\\,111\\,100"],
    "1000": ["1 000", "1\\,000", "1{,}000", "1,000", "1\u00a0000", "1\u2009000", "10^3", "1\\ 000", "1'000", "1e3",
        "1000."],
    "1250": ["1\\,250", "1~250", "1,250.00", "+1250", "1.25 \\cdot 10^3", "1.25 \\times 10^{3}"],
    "100000": ["1,00,000", "100,000", "1\\times10^5", "10^{5}"],
    "1234567.5": ["1.234.567,5", "1,234,567.5", "1 234 567.5"],
    "28\\%": ["28 percent", "28 pct", "28\\%", "28%", "28", "28 per cent", "28\\text{ percent}", "0.28",
        "28 percentage"],
    "5": [
        "5 dollars", "5 km/h", "The answer is 5", "\\text{Ans: }5", "5,", "\\underline{5}", "\\textbf{(A) }5", "x = 5",
        "\\mathbf{5}", "\\boldsymbol{5}", "{5}", "\\$5", "5\\text{ apples}", "5\\,\\text{cm}", "5 \\mathrm{~cm}", "5.0",
        "5 m", "5\\text{m}", "(5)", "n=5", "\\frac{10}{2}", "\\frac{5}{1}", "\\sqrt{25}", "5;", "5\\\\",
            "\\color{red}5",
        "\\textcolor{blue}{5}", "\\displaystyle 5", "\\left(5\\right)", "\\text{The answer is } 5", "Answer: 5",
            "**5**",
        "5\\text{ units}", "5 \\text{ square units}", "5\\quad", "\\text{about }5", "\\text{5}", "x \\to 5 = 5",
            "5!/24",
        "5 \\text{ (years)}", "2 + 3 = 5", "\\{5\\}", "5\\text{ hours per day}", "\\fbox{5}", "AB = 5", "|AB| = 5",
        "5^1", "5 \\text{ m/s}^2", "\\(5\\)", "\\boxed{5}", "5\\approx 5.0",
    ],
    "15\\mbox{ cm}^2": ["15 cm^2", "15", "15\\text{ cm}^2", "15 \\text{ square centimeters}", "15 sq cm", "15 cm²",
        "1500 mm^2"],
    "\\$36": ["36", "36 dollars", "\\$36.00", "36\\text{ USD}", "USD 36", "$36"],
    "\\frac{3}{2}": ["1 1/2", "1\\frac12", "1\\frac{1}{2}", "3/2", "1.5", "\\dfrac32", "\\tfrac{3}{2}", "1\\ 1/2",
        "{3}/{2}"],
    "\\frac{1}{3}": ["0.\\overline3", "0.\\overline{3}", "0.\\bar{3}", "0.333333", "0.(3)", "0.333\\ldots",
        "\\frac{2}{6}", "⅓"],
    "\\frac{1}{2}": ["\\nicefrac12", "\\frac12", "½", "0.5", "0,5", ".5", "50\\%", "1/2", "2^{-1}",
        "\\frac{1}{2}\\text{ cup}"],
    "-\\frac{1}{2}": ["-1/2", "\\frac{-1}{2}", "-0.5", "−½", "-\\dfrac{1}{2}", "\\frac{1}{-2}"],
    "e^2": ["\\mathrm e^2", "\\mathrm{e}^{2}", "e^{2}", "\\text{e}^2", "\\exp(2)", "e \\cdot e"],
    "1-\\frac{1}{\\mathrm{e}}": ["1-\\frac{1}{e}", "1 - e^{-1}", "\\frac{e-1}{e}"],
    "i": ["\\sqrt{-1}", "\\mathrm{i}", "i"],
    "204_5": ["204_{\\text{five}}", "204_{5}", "204_{five}", "(204)_5", "204 \\text{ base } 5",
        "204_{\\text{base 5}}", "\\text{204}_5"],
    "101_2": ["101_{\\text{two}}", "(101)_{2}", "101\\text{ in base 2}", "101_{\\mathrm{two}}", "0101_2"],
    "(0,1)": ["]0,1[", "(0, 1)", "\\left(0,1\\right)", "0 < x < 1", "x\\in(0,1)", "\\left]0;1\\right["],
    "[0,1)": ["[0,1[", "0 \\le x < 1", "x \\in [0, 1)", "[0; 1)", "1 > x \\geq 0"],
    "(-\\infty, 0]": ["x \\le 0", "x<=0", "]-\\infty,0]", "(-∞, 0]", "(-\\infty,0\\rbrack"],
    "(-\\infty, 2) \\cup (3, \\infty)": ["x<2 \\text{ or } x>3", "(3,\\infty)\\cup(-\\infty,2)",
        "(-\\infty,2)∪(3,+\\infty)"],
    "3.14": ["3,14", "3.140", "\\frac{157}{50}"],
    "90^\\circ": ["90°", "90", "90^{\\circ}", "90 degrees", "90\\degree", "90\\text{ degrees}", "90^{\\text{o}}",
        "90 deg", "90º"],
    "\\sqrt{3}": ["√3", "\\sqrt3", "sqrt(3)", "3^{1/2}", "3^{0.5}", "\\sqrt[2]{3}", "√{3}", "1.732051"],
    "\\sqrt{13}": ["√13", "\\sqrt{13}", "√(13)", "sqrt13"],
    "\\pi": ["π", "pi", "3.141593", "\\frac{2\\pi}{2}"],
    "2\\pi": ["2π", "2pi", "2*pi", "\\pi + \\pi", "6.283185"],
    "y = 2x + 3": ["2x+3", "y=3+2x", "2x - y + 3 = 0", "y - 2x = 3", "y-3=2x", "y = 2(x+1)+1"],
    "5x - 7y + 11z + 4 = 0": ["11z + 5x - 7y + 4 = 0", "5x - 7y + 11z = -4", "-5x + 7y - 11z - 4 = 0", "0=5x-7y+11z+4"],
    "1 \\pm \\sqrt{19}": ["1+\\sqrt{19}, 1-\\sqrt{19}", "1 - \\sqrt{19} \\text{ and } 1 + \\sqrt{19}", "1±√19",
        "x = 1 \\pm \\sqrt{19}"],
    "1,-2": ["-2, 1", "x=1, x=-2", "\\{1,-2\\}", "1 \\text{ and } -2", "x = 1 \\text{ or } x = -2", "-2;1", "1,\\ -2",
        "1 \\quad \\text{and} \\quad -2"],
    "\\pm 2": ["2,-2", "\\{-2, 2\\}", "x=\\pm2", "-2 \\text{ or } 2"],
    "\\{1,2,3\\}": ["1,2,3", "\\{3,2,1\\}", "\\left\\{1,2,3\\right\\}", "\\lbrace 1, 2, 3 \\rbrace"],
    "(2,-1)": ["(2, -1)", "(x,y) = (2,-1)", "\\left(2,-1\\right)", "(2;-1)", "(4/2, -1)", "x=2, y=-1",
        "\\langle 2,-1\\rangle", "（2，-1）"],
    "\\left( 3, \\frac{\\pi}{2} \\right)": ["(3,π/2)", "(3, 0.5\\pi)", "\\left(3,\\dfrac{\\pi}{2}\\right)"],
    "\\begin{pmatrix} -2 \\\\ 5 \\end{pmatrix}": ["\\begin{bmatrix}-2\\\\5\\end{bmatrix}",
        "\\begin{pmatrix}-2\\\\ 10/2\\end{pmatrix}"],
    "\\text{east}": ["east", "\\text{East}", "\\textbf{east}", "East.", "\\mathrm{east}", "\\text{ east }"],
    "\\text{even}": ["even", "\\text{Even}", "The answer is even"],
    "\\text{(C)}": ["C", "(C)", "\\text{C}", "\\textbf{(C)}", "C.", "\\textbf{(C)}\\ 12", "(C) 12", "\\mathrm{(C)}"],
    "4:30 \\text{ p.m.}": ["4:30 pm", "4:30 PM", "4{:}30\\text{ p.m.}", "16:30", "4:30\\text{ in the afternoon}"],
    "12:00": ["12:00", "12:00\\text{ noon}"],
    "3:2": ["3 : 2", "6:4", "3\\text{ to }2", "3{:}2"],
    "8.7e8": ["8.7\\times10^8", "870000000", "8.7 \\cdot 10^{8}", "8.7e8", "8.7E8", "8.7 × 10⁸", "8.7e+08",
        "8.7*10^8", "870{,}000{,}000"],
    "1e-07": ["10^{-7}", "1 \\times 10^{-7}", "0.0000001", "1e-7", "\\frac{1}{10^7}"],
    "3 \\text{ days}": ["3", "3 days", "72 hours", "3\\text{ day}"],
    "\\frac{270}7\\text{ degrees}": ["\\frac{270}{7}", "\\frac{270}{7}^\\circ", "38\\frac{4}{7}\\text{ degrees}"],
    "6 - 5i": ["6-5i", "-5i + 6", "6 - 5\\mathrm{i}"],
    "x^3+3x-6": ["3x+x^3-6", "x(x^2+3)-6", "x^3 + 3 x - 6"],
    "p - q": ["-q+p", "p-q"],
    "(a+5)(b+2)": ["ab+2a+5b+10", "(b+2)(a+5)"],
    "f(x)=2x": ["2x", "f(x) = x \\cdot 2"],
    "k \\ge 2": ["k\\geq2", "[2,\\infty)", "k≥2", "2 \\le k"],
    "\\frac{dx}{dt} = kx - a": ["\\frac{dx}{dt}=-a+kx"],
    "\\binom{2n}{n}": ["\\frac{(2n)!}{n!^2}", "\\dbinom{2n}{n}"],
    "\\frac{100!}{2^{50}}": ["100!/2^{50}", "\\frac{100!}{4^{25}}"],
    "2^{1009}": ["2^{1009}", "2\\cdot 2^{1008}"],
    "12": ["twelve", "\\text{twelve}", "\\text{There are 12 ways.}", "12''", "\\qty{12}{m}", "12 \\si{m}", "|z| = 12",
        "not 10 but 12",
        "the number is not 10 which is 12€", "\\gcd(24,36)", "|\\vec v| = 12"],
    "\\frac{7}{3}": ["{7\\over3}", "7 \\over 3", "2 \\text{ and } \\frac13", "2 and 1/3", "2.33\\ldots", "7⁄3"],
    "\\frac{5}{11}": ["0.4545...", ".\\overline{45}", "0.\\overline{45}"],
    "2.5": ["2,5\\text{ cm}", "2,50\\text{ €}", "2,5 m", "2½"],
    "12.5\\%": ["12,5\\%", "12.5\\text{ per cent}", "12\\frac12\\%"],
    "30^\\circ": ["30{}^\\circ", "30^\\text{o}", "\\ang{30}", "30°."],
    "50\\text{ mph}": ["50\\frac{\\text{miles}}{\\text{hour}}", "50 mi/hr", "50"],
    "[-2,7]": ["\\{x : -2 \\le x \\le 7\\}", "x \\ge -2 \\text{ and } x \\le 7", "-2 \\\\le x \\\\le 7",
        "\\text{the interval }[-2,7]"],
    "(-\\infty,-1)\\cup(1,\\infty)": ["(-oo,-1) U (1,oo)", "x<-1 \\text{ or } x>1",
        "\\{x \\mid x<-1 \\text{ or } x>1\\}"],
    "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}": ["[[1,2],[3,4]]", "A=\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}",
        "\\vec v=\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"],
    "11_2": ["11 \\text{ in binary}", "11_{\\text{two}}"],
    "(3,-2)": ["\\text{Point }(3,-2)", "\\text{the point } P(3,-2)", "3,-2"],
    "(1,2),(3,4)": ["x=1,y=2\\text{ or }x=3,y=4", "y=4,x=3;y=2,x=1", "(3,4),(1,2)"],
    "\\emptyset": ["\\{\\}", "\\text{no solution}", "\\text{There are no real solutions}", "∅"],
    "\\text{Monday}": ["\\text{It is Monday}", "\\text{The day is Monday}", "monday."],
    "\\text{(E)}": ["\\text{Option E}", "E", "(E)"],
    "\\frac{\\pi}{3}": ["\\\\frac{\\\\pi}{3}", "π/3"],
}  # fmt: skip
MATH_WRONG = {
    "204_5": ["204_6", "204", "54", "204_{\\text{six}}", "203_5", "402_5", "204_{5}5"],
    "0.2": ["3:15", "1:5"],
    "3:15": ["0.2", "3.15", "315", "3:16", "1/5"],
    "4:30 \\text{ p.m.}": ["4:30 a.m.", "3:30 p.m.", "4:31 p.m.", "430", "4.5", "16:31"],
    "(2,1)": ["\\{2,1\\}", "\\{1,2\\}", "(1,2)", "[2,1]", "2", "(2,1,1)", "(2,1],",
        "\\begin{pmatrix}2&1\\end{pmatrix}", "1,2", "21"],
    "(18,-24)": ["[18,-24]", "\\{18,-24\\}", "(-24,18)", "(18,24)", "18-24", "[18,-24)"],
    "[0,1)": ["(0,1)", "[0,1]", "(0,1]", "0\\le x\\le 1", "0,1"],
    "\\text{east}": ["seat", "eats", "\\text{seat}", "west", "\\text{not east}", "east or west", "\\text{east, west}",
        "e a s t"],
    "\\text{no}": ["on", "yes", "\\text{yes or no}", "n", "not no"],
    "1,2": ["1,2,2", "1", "2", "1,2,3", "1,1", "12", "[1,2]"],
    "5": [
        "5 or 6", "not 5", "5 and 6", "5, 6", "\\{5,6\\}", "5/6", "5 \\text{ or } 6", "\\pm 5", "-5", "5_6", "5:00",
            "(5,5)",
        "55", "5 \\text{ but maybe } 6", "\\text{either 5 or 6}", "x > 5", "x \\neq 5", "[5,6]", "5x", "5i",
            "\\text{See page 5}",
        "\\text{at least 5}", "5 thousand", "1, 2, 3, 4, 5", "5...10", "5\\text{ to }6", "4 < x < 6", "5\\frac{1}{2}",
            "", "?",
        "\\text{more than }5", "\\text{none of 5}", "5^2", "5!", "\\text{Step 5}", "5\\ 6", "5 6", "x=5, y=6",
            "5 \\implies 6",
        "5 \\neq 6", "5.1", "5e1", "\\text{five or six}", "\\sqrt 5", "5 = 6", "\\text{between 4 and 6}", "５",
            "5 million",
    ],
    "x=5": ["y=5", "x=6", "x>5", "x=5 \\text{ or } x=6", "\\text{x is not 5}"],
    "0.0000001": ["0.0000002", "0", "10^{-6}", "0.00000011"],
    "1.5\\times10^{-8}": ["0", "1.5\\times10^{-9}", "1.6\\times10^{-8}", "0.00000001", "15"],
    "\\frac{1}{2^{99}}": ["\\frac{1}{2^{98}}", "0", "2^{99}", "\\frac{1}{2^{100}}"],
    "\\frac{1}{2004!}": ["\\frac{1}{2006!}", "0"],
    "10^{-19}": ["10^{-21}", "10^{19}", "0", "1.1\\times10^{-19}"],
    "3e8": ["65.2387639", "3e9", "24e", "3e", "38"],
    "8.7e8": ["8.7\\times10^9", "87", "8.7", "8.8\\times10^8"],
    "\\frac{1}{3}": ["0.33", "0.3", "0.3333", "33\\%", "3", "1,3", "\\frac{1}{3}\\text{ or }\\frac12",
        "0.\\overline{33}1"],
    "3 \\text{ days}": ["3 hours", "3 weeks", "4 days", "3\\text{ minutes}"],
    "15\\mbox{ cm}^2": ["15 mm^2", "15 m^2", "15 \\text{ inches}^2", "15 km"],
    "\\$36": ["36 cents", "36 euros", "\\$35"],
    "5.4 \\text{ cents}": ["5.4 dollars", "\\$5.4"],
    "90^\\circ": ["90\\text{ radians}", "91^\\circ", "\\frac{\\pi}{3}"],
    "y = 2x + 3": ["y = 2x - 3", "y=3x+2", "x=2y+3", "2x - y - 3 = 0", "2y+3"],
    "5x - 7y + 11z + 4 = 0": ["5x - 7y + 11z - 4 = 0", "5x+7y+11z+4=0", "0=0", "0", "5x - 7y + 11z + 4"],
    "1 \\pm \\sqrt{19}": ["1 + \\sqrt{19}", "-1 \\pm \\sqrt{19}", "1 \\pm \\sqrt{17}", "1"],
    "(-\\infty, 2) \\cup (3, \\infty)": ["(-\\infty,2)", "(2,3)", "x<2", "(-\\infty, 3) \\cup (2, \\infty)",
        "(-\\infty, 2] \\cup (3, \\infty)"],
    "\\text{(C)}": ["(A)", "ABC", "(A), (B), (C)", "A or C", "not C", "\\text{(B) or (C)}", "(A)(C)", "C, D",
        "none of C"],
    "\\begin{pmatrix} -2 \\\\ 5 \\end{pmatrix}": ["\\begin{pmatrix} 5 \\\\ -2 \\end{pmatrix}", "(-2,5,1)",
        "\\begin{pmatrix} -2 & 5 \\end{pmatrix}"],
    "\\frac{\\sqrt{3}}{3}": ["0.577", "\\frac{\\sqrt{3}}{2}", "\\frac{3}{\\sqrt{3}}", "\\sqrt 3, 3"],
    "2k": ["2", "2n", "k", "2k+1", "k^2"],
    "\\frac{1}{x}": ["x", "\\frac{1}{y}", "\\frac{1}{x^2}", "-\\frac1x"],
    "|x|": ["x", "-x", "\\sqrt{x}"],
    "I(0)e^{-\\frac{t}{RC}}": ["0", "I(0)", "e^{-\\frac{t}{RC}}", "I(0)e^{\\frac{t}{RC}}"],
    "6 - 5i": ["6+5i", "6-5", "5-6i", "(6,-5)"],
    "0": ["e^{-1000}", "10^{-400}", "10^{-10^{10}}", "10^{-20}", "\\emptyset"],
    "6": ["10^{10^{10}}", "9!!!!", "9!!!! 9!!!!", "(" * 50, "7" * 400, "%" * 300,
        "1^1^1" * 300, "six or seven", "not 6 but 7"],
    "x+1": ["7" * 400, "(" * 50],
    "29\\%": ["29\\text{ permille}", "29‰", "2.9\\%"],
    "91^\\circ": ["91\\%", "91\\text{ rad}"],
    "4:30": ["8:60", "4.5", "9:00"],
    "(-\\infty,-1)\\cup(1,\\infty)": ["x<-1\\text{ and }x>1", "(-1,1)"],
    "(1,2),(3,4)": ["x=2,y=1\\text{ or }x=4,y=3", "x=1,y=2", "x=1,x=2;x=3,x=4"],
    "\\text{Monday}": ["\\text{It is not Monday}", "\\text{It is Tuesday}", "Monday or Tuesday"],
    "\\text{Yes}": ["\\text{yes or no}", "no", "\\text{yes and no}"],
    "32349": ["32, 349", "32.349", "32349, 32350", "3234 9"],
}  # fmt: skip


def pairs(table):
    return [(gold, answer) for gold, answers in table.items() for answer in answers]


@pytest.mark.parametrize(("gold", "answer"), pairs(MATH_RIGHT))
def test_mathematics_right(gold, answer):
    assert right(MATH, gold, f"so it is \\boxed{{{answer}}}")


@pytest.mark.parametrize(("gold", "answer"), pairs(MATH_WRONG))
def test_mathematics_wrong(gold, answer):
    assert not right(MATH, gold, f"so it is \\boxed{{{answer}}}")


@pytest.mark.parametrize("gold", MATH_RIGHT)
def test_every_gold_is_right_as_it_stands(gold):
    assert right(MATH, gold, f"\\boxed{{{gold}}}")


@pytest.mark.parametrize(
    ("gold", "text", "is_right"),
    [
        ("143", "I get \\boxed{142}. Wait, no: \\boxed{143}", True),
        ("142", "I get \\boxed{142}. Wait, no: \\boxed{143}", False),
        ("143", "\\boxed{143}\n</think>\nThe answer is \\boxed{143}.", True),
        ("1,2", "\\boxed{1} and \\boxed{2}", True),
        ("2", "\\boxed{1} or \\boxed{2}", False),
        ("1,2", "\\boxed{1} papers and \\boxed{2} bins", True),
        ("5", "\\boxed 5", True),
        ("5", "\\boxed5.", True),
        ("5", "The answer is 5", True),
        ("5", "The answer is 5.", True),
        ("5", "So the final answer is: $5$. I hope it is correct.", True),
        ("5", "**Final Answer:** 5", True),
        ("5", "**Final Answer**\n\n$x = 5$", True),
        ("5", "Thus the answer is:\n\\[\n5\n\\]", True),
        ("\\frac{1}{2}", "The answer is $\\frac{1}{2}$.", True),
        ("5", "<answer>5</answer>", True),
        ("5", "<think>\\boxed{4}</think><answer>5</answer>", True),
        ("4", "<think>\\boxed{4}</think><answer>5</answer>", False),
        ("5", "#### 5", True),
        ("5", "The answer is 4. No: the answer is 5.", True),
        ("5", "The answer is 5 or 6", False),
        ("5", "The answer is not 5", False),
        ("5", "The answer isn't 5", False),
        ("5", "The answer is 6, not 5", False),
        ("5", "See page 5", False),
        ("5", "Step 5. unfinished", False),
        ("5", "So $x = 5$", False),
        ("5", "5", False),
        ("5", "$5$", False),
        ("5", "\\boxed{5} \\boxed{}", False),
        ("5", "so \\boxed{5}, therefore \\boxed{", False),
        ("5", "so \\boxed{5}, therefore \\boxed{\\frac{1}{", False),
        ("5", "The answer is not \\boxed{5}", False),
        ("5", "It isn't $\\boxed{5}$.", False),
        ("5", "The answer is unknown", False),
        ("5", "I cannot answer this. 5", False),
    ],
)
def test_where_the_answer_stands(gold, text, is_right):
    assert right(MATH, gold, text) == is_right


@pytest.mark.parametrize(
    ("settings", "gold", "answer", "is_right"),
    [
        ({}, "3 \\text{ days}", "3 hours", False),
        ({"compare_units": False}, "3 \\text{ days}", "3 hours", True),
        ({}, "0.5", "50\\%", True),
        ({"percent_as_fraction": False}, "0.5", "50\\%", False),
        ({"percent_as_fraction": False}, "50", "50\\%", True),
        ({}, "5050", "\\sum_{k=1}^{100} k", True),
        ({"unevaluated": False}, "5050", "\\sum_{k=1}^{100} k", False),
        ({"unevaluated": False}, "5050", "\\frac{100 \\cdot 101}{2}", True),
        ({}, "\\text{(C)}", "c", False),
        ({"small_letters": True}, "\\text{(C)}", "c", True),
    ],
)
def test_where_graders_differ(settings, gold, answer, is_right):
    assert right(MATH, gold, f"\\boxed{{{answer}}}", **settings) == is_right


@pytest.mark.parametrize(("settings", "is_right"), [({}, True), ({"boxes_in_thinking": False}, False)])
def test_a_box_in_the_thinking_only(settings, is_right):
    assert right(MATH, "5", "<think>so \\boxed{5}</think> That was it.", **settings) == is_right
    assert right(MATH, "5", "<think>so \\boxed{5}", **settings) == is_right


NESTED = "\\frac{1}{1+" * 15 + "x" + "}" * 15
SUM = [f"{k}x^{{{k}}}y^{{{20 - k}}}" for k in range(1, 20)]


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (NESTED, NESTED.replace("1+x", "x+1")),
        ("+".join(SUM), "+".join(reversed(SUM))),
        ("x^2+y^2+z^2=2xy+2yz+2zx+1", "2xy + 2yz + 2zx + 1 = z^2 + y^2 + x^2"),
        ("\\frac{\\sin(a+b)}{\\cos a\\cos b}", "\\tan a+\\tan b"),
    ],
)
def test_heavy_answers_are_read_without_the_verifier(gold, answer):
    assert right(MATH, gold, f"\\boxed{{{answer}}}", verify_timeout=0.001)


# ---- the other kinds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer", "is_right"),
    [
        ("145°", "145^\\circ", True),
        ("145°", "$145^\\circ$", True),
        ("145°", "\\boxed{145}", True),
        ("145°", "∠1 is 145°", True),
        ("145", "∠ABC = 145°", True),
        ("145", "145 degrees", True),
        ("5√3", "5\\sqrt{3}", True),
        ("5√3", "5√3 cm", True),
        ("2π", "2\\pi", True),
        ("½", "\\frac{1}{2}", True),
        ("0.5", "½", True),
        ("3.5", "3½", True),
        ("3½", "7/2", True),
        ("145°", "angle 1 = 145°", True),
        ("\\frac{3}{5}", "sin A = 3/5", True),
        ("145°", "145%", False),
        ("145°", "35°", False),
        ("145°", "145° or 35°", False),
        ("145°", "not 145°", False),
        ("5√3", "5", False),
        ("5√3", "3√5", False),
        ("2π", "2", False),
        ("3½", "3", False),
    ],
)
def test_geoqa(gold, answer, is_right):
    assert right(GEOQA, gold, f"<think>a</think><answer>{answer}</answer>") == is_right


@pytest.mark.parametrize(
    ("gold", "text", "is_right"),
    [
        *[("left", f"<answer>{a}</answer>", True) for a in ("the left", "**left**", "left!", "\\boxed{left}",
            "It is left.", "Left", "'left'", "`left`", "the answer is left", "\\text{left}", "Answer: left",
                "(A) left")],
        *[("left", f"<answer>{a}</answer>", False) for a in ("not left", "left or right", "left/right", "left, right",
            "right", "leftright", "neither left", "A", "left and right", "")],
        *[("3", f"<answer>{a}</answer>", True) for a in ("There are 3", "3 chairs", "3.0", "There are 3 chairs.",
            "$3$", "(B) 3")],
        *[("3", f"<answer>{a}</answer>", False) for a in ("3 or 4", "2, 3", "not 3", "13", "3 to 4", "-3", "0 1 2 3",
            "at least 3")],
        *[("(A)", f"<answer>{a}</answer>", True) for a in ("A", "(A)", "A.", "A)", "(A) dog", "A. dog", "A: dog",
            "the answer is (A)", "Option A", "**A**", "Answer: A", "[A]", "\\boxed{A}", "The correct option is A.",
                "(A) a dog")],
        *[("(A)", f"<answer>{a}</answer>", False) for a in ("A dog", "A or b", "A or B", "not A", "None of A", "A, B",
            "(A) (B)", "AB", "A/B", "a", "B", "(A) or (B)", "A and B", "either A", "all", "A B C D", "A dog is near",
                "It is not (A)", "(B) A", "A. or B.", "A. B.", "A.\nB", "A|B")],
        *[("4", f"<answer>{a}</answer>", True) for a in ("four", "There are four chairs", "I count 4",
            "I see 4 chairs")],
        *[("4", f"<answer>{a}</answer>", False) for a in ("four or five", "forty", "fourteen", "twenty-four")],
        *[("(A)", f"<answer>{a}</answer>", True) for a in ('"A"', "A - left", "(A) is correct")],
        *[("(A)", f"<answer>{a}</answer>", False) for a in ("(A) is false", "(A) isn't right", "A can be excluded",
            "(A) cannot be")],
        ("(A)", "<think>A dog is near the cat", False),
        ("(A)", "<think>the answer is A", False),
        ("left", "<think>left", False),
        ("1.5 meters", "<answer>1.5 meters</answer>", True),
        ("1.5 meters", "<answer>1.5 m</answer>", True),
        ("1.5 meters", "<answer>1.5 feet</answer>", False),
        ("1.5 meters", "<answer>1.5 kilometers</answer>", False),
    ],
)  # fmt: skip
def test_choice(gold, text, is_right):
    assert right(SAT, gold, text) == is_right


def test_an_option_in_small_letters_is_a_setting():
    assert not right(SAT, "(B)", "<answer>b</answer>")
    assert right(SAT, "(B)", "<answer>b</answer>", small_letters=True)
    assert not right(SAT, "(A)", "<answer>a dog</answer>", small_letters=True)


@pytest.mark.parametrize(
    ("gold", "answer", "is_right"),
    [
        ("Audi S4 Sedan 2012", "Audi S4 Sedan, 2012", True),
        ("Audi S4 Sedan 2012", "audi_s4_sedan_2012", True),
        ("Audi S4 Sedan 2012", "This is an Audi S4 Sedan 2012.", True),
        ("Audi TTS Coupe 2012", "Audi TTS Coupe", True),
        ("pug", "Pug (Chinese)", True),
        ("pug", "a pug dog", True),
        ("pug", "The breed of the dog is Pug.", True),
        ("DC-10", "dc10", True),
        ("DC-10", "McDonnell Douglas DC-10", True),
        ("737-200", "Boeing 737-200", True),
        ("Boeing 737-200", "737-200", True),
        ("colt's foot", "colts foot", True),
        ("english marigold", "English marigolds", True),
        ("Audi S4 Sedan 2012", "2012 Audi S4 Sedan", True),
        ("Audi S4 Sedan 2012", "This is a 2012 Audi S4 Sedan.", True),
        ("BMW M3 Coupe 2012", "2012 BMW M3 Coupe", True),
        ("yorkshire terrier", "Terrier, Yorkshire", True),
        ("Audi S4 Sedan 2012", "2007 Audi S4 Sedan", False),
        ("Audi S4 Sedan 2012", "2012 Audi Sedan", False),
        ("Audi S4 Sedan 2012", "2007 Audi S4 Sedan 2012", False),
        ("Audi S4 Sedan 2012", "sedan2012", False),
        ("Audi S4 Sedan 2012", "Sedan 2012", False),
        ("Audi S4 Sedan 2012", "Audi S4 Sedan 2007", False),
        ("Audi S4 Sedan 2012", "Audi S4 Sedan", False),  # there is one of 2007
        ("Audi S4 Sedan 2012", "Audi", False),
        ("pug", "not a pug", False),
        ("pug", "pug or boxer", False),
        ("pug", "pug/boxer", False),
        ("pug", "pug & boxer", False),
        ("pug", "pug boxer", False),
        ("Siamese", "Siamese. Ragdoll.", False),
        ("Siamese", "Ragdoll (Siamese)", False),
        ("Siamese", "Siamese-Ragdoll", False),
        ("american bulldog", "bulldog", False),
        ("english cocker spaniel", "spaniel", False),
        ("737-200", "737", False),
        ("737-200", "Boeing", False),
        ("737-200", "737-200 or 737-300", False),
        ("A320", "A3", False),
    ],
)
def test_class_names(gold, answer, is_right):
    assert right(sources.PETS, gold, f"<think>a</think><answer>{answer}</answer>") == is_right


@pytest.mark.parametrize(
    "text",
    [
        "[100,100,200,200]",
        "[[100,100],[200,200]]",
        '{"bbox_2d": [100, 100, 200, 200], "label": "mug"}',
        '```json\n[{"bbox_2d": [100, 100, 200, 200]}]\n```',
        "(100.0,100.0),(200.0,200.0)",
        "(100,100)(200,200)",
        "(100,100) (200,200)",
        "<box>(100,100),(200,200)</box>",
        "(100, 100, 200, 200)",
        "(100;100),(200;200)",
    ],
)
def test_other_forms_of_a_box(text):
    assert compute_score(sources.LISA, f"<answer>{text}</answer>", "(100,100),(200,200)")["box_iou"] == 1
    assert compute_score(sources.LISA, f"<answer>{text} [1,1,2,2]</answer>", "(100,100),(200,200)")["box_iou"] == 0


def test_four_bare_numbers_are_a_box_and_three_points_are_none():
    assert compute_score(sources.LISA, "<answer>100, 100, 200, 200</answer>", "(100,100),(200,200)")["box_iou"] == 1
    assert (
        compute_score(sources.LISA, "<answer>(100,100),(200,200),(300,300)</answer>", "(100,100),(200,200)")["acc"] == 0
    )


@pytest.mark.parametrize(
    ("gold", "answer", "is_right"),
    [
        ("\\frac{\\pi^4}{15}", "\\int_0^\\infty \\frac{x^3}{e^x-1}dx", True),
        ("\\frac{\\pi^4}{15}", "\\int_0^\\infty x^3/(e^x-1)", True),
        ("\\frac{\\pi^4}{16}", "\\int_0^\\infty \\frac{x^3}{e^x-1}\\,dx", False),
        ("\\frac{a^3}{3}", "\\int_0^a x^2 dx", True),
        ("\\frac{\\sqrt{\\pi}}{2}", "\\int_{0}^{\\infty} e^{-t^2} dt", True),
        ("0.333", "\\int_0^1 x^2 dx", False),
    ],
)
def test_definite_integrals_are_computed_without_the_verifier(gold, answer, is_right):
    assert right(MATH, gold, f"\\boxed{{{answer}}}", verify_timeout=0.001) == is_right
