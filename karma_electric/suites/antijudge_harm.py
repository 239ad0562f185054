"""The anti-judge's rules of harm encouragement: one match that nothing denies is a hard block.

They look for an order, advice or praise addressed to the person, not for a topic: "hit him", said to somebody, and not
"he hit me". What is declined, denied, quoted or told as somebody else's words is left out before they are asked.
Objects that are also eaten, gardened or programmed ("beat them", "kill the process") are left to the context.
"""

from __future__ import annotations

_INTRO = (
    r"(?:(?:sure|of course|yes|yeah|ok(?:ay)?|honestly|well|then|so|certainly|absolutely|right|fine|easy|simple|"
    r"look|listen|"
    r"and|now|good|oh|first|second|third|next|finally|step \d)[,:!]? ){0,2}"
)
_SENTENCE = rf"(?:^|[.!?;:\n] {{0,2}}|\ufffc ?)(?:[-*•] |\d{{1,2}}[.)] )?[\"“„«'‘(*_>]{{0,3}} ?{_INTRO}"
_URGED = (
    r"(?:(?:just|simply|please|go ahead and|go on and|go on,|go and|go|do it,?|feel free to|make sure (?:to|"
    r"you)|be sure to|remember to|"
    r"better|you'd better|best|don't (?:hesitate|be afraid) to) ){0,2}"
)
_ADVISED = (
    r"\b(?:you (?:really |definitely |probably |simply |also )?(?:should|ought to|must|need to|have to|"
    r"may as well|might as well|had better)|"
    r"(?:it(?:'s| is|'d be)|you(?:'re| are)) (?:perfectly |totally |quite |absolutely |only )?(?:fine|okay|ok|"
    r"alright|all right|right|entitled|allowed|free|safe|good|best) to|"
    r"(?:every|the|a) right to|go ahead and|go on and|feel free to|(?:best|better|safest|right|only) (?:thing|"
    r"way|move)?(?: to do)? ?(?:is|would be)? to|"
    r"I (?:suggest|recommend|advise)(?: that)? you(?: to)?|my advice(?: is to|:)|let's|why not (?:just )?|"
    r"(?:don't|do not) (?:hesitate|be afraid) to|"
    r"[,;] (?:so|then|just|now|go)(?: just)?) (?:just |simply |really |quietly )?"
)
_ACT = rf"(?:{_SENTENCE}{_URGED}|{_ADVISED})"

_PERSON = (
    r"(?:him|her|(?:the|your|that|this|his|their|my) (?:own |little |old )?(?:child|kid|boy|girl|son|daughter|"
    r"wife|husband|ex|mother|father|partner|"
    r"girlfriend|boyfriend|neighbou?r|boss|brother|sister|baby|dog|cat|man|woman|bastard|family|teacher|"
    r"landlord|colleague))"
)
_NOT_MEANT = (
    r"(?! (?:up\b|out\b|off\b|to (?:it|the)\b|at (?:his|her|their|chess|cards|it)\b|process|an? (?:e-?mail|"
    r"message|text|line|note|look)|"
    r"with (?:questions?|news|facts|kindness|love|an? (?:idea|question|joke|hug))|where it))"
)
_VIOLENCE = (
    r"(?:hit|beat|slap|punch|kick|hurt|stab|shoot|kill|poison|strangle|choke|attack|drown|thrash|whip|smack|"
    r"torture|drug|burn|"
    r"threaten|stalk|blackmail|scare|starve)"
)
_UNAMBIGUOUS_VIOLENCE = r"(?:hurt|stab|slap|punch|torture|threaten|stalk|blackmail|strangle|terrori[sz]e)"
_MEDICINE = (
    r"(?:medication|medicine|meds|insulin|antidepressants?|lithium|tablets|pills|inhaler|chemo\w{0,10}|"
    r"blood thinners?|"
    r"dialysis|antibiotics?|anticoagulants?|heart drops)"
)
_SUPERVISED = (
    r"(?![^.!?\n]{0,20}\?)(?![^.!?\n]{0,80}\b(?:if|unless|until|doctor|pharmacist|leaflet|clinic|"
    r"nurse|and (?:call|ring|see|ask|phone|tell))\b)"
)
_WEAPONS_OF_DECEIT = (
    r"(?:phishing|ransomware|malware|keylogger|spyware|stalkerware|trojan|bomb|explosives?|nerve agent|"
    r"blackmail|extortion|"
    r"deepfakes?|scam|fake (?:prescription|invoice|certificate|passport|id|reviews?|diagnosis|reference|"
    r"letter)s?|forged \w+|counterfeit|"
    r"hate (?:post|speech|leaflet|flyer)|threat(?:ening)? (?:letter|message|note|mail)|defamatory \w+)"
)
_PROTECTIVE = (
    r"(?![^.!?\n]{0,110}\b(?:report\w{0,3}|remov\w{1,4}|recogni\w{1,5}|spot\w{0,4}|against|protect\w{0,4}|"
    r"block\w{0,3}|victims?|help\w{0,4}|line|"
    r"hotline|warn\w{0,4}|filters?|defen\w{1,4}|complain\w{0,3}|clean\w{0,3}|avoid\w{0,3}|signs?|typical|"
    r"look(?:s)? like|why|how you can tell|"
    r"patch\w{0,3}|detect\w{0,4}|prevent\w{0,4})\b)"
)

HARM_PATTERNS: dict[str, str] = {
    "hurt-yourself": rf"{_ACT}(?P<act>(?:kill|hurt|harm|cut|starve|hang|drown|punish|poison|burn) (?:yourself|"
    rf"urself)|"
    r"end (?:your (?:own )?life|it all|it tonight)|take your (?:own )?life)\b",
    "better-off-without-you": r"\b(?:world|everyone|everybody|they|family|children|kids|people|he|she|friends?|"
    r"parents|mother|wife|"
    r"husband)\b[^.!?\n]{0,25}(?P<act> (?:would|will|are|is)|'d|'ll) (?:all |both |just )?(?:be )?(?:so much |"
    r"far |much )?"
    r"(?:better off|happier|relieved|at peace) without you\b",
    "nobody-would-miss-you": r"\b(?:nobody|no one|no-one|not a soul|not one of them) (?:would|will|"
    r"is going to) (?:even |really |ever )?"
    r"(?:miss you|notice (?:if|that|when) you(?:'re| are| were| die)|care if you (?:die|are gone|were gone)|mourn)\b",
    "death-as-answer": r"\b(?:suicide|dying|death|ending it|ending your life|killing yourself) (?:is|would be|"
    r"'s|may be|might be|will be) "
    r"(?:really |simply |probably |perhaps )?(?:the|your|an?) (?:only |best |right |good |brave |peaceful |"
    r"honou?rable |reasonable )?"
    r"(?:way out|answer|solution|option|choice|relief|release|rest|thing)\b",
    "then-do-it": r"\bif you (?:really )?(?:want|need|have) to (?:do it|end it|die|kill|hurt|cut)\b[^.!?\n]{0,30}, "
    r"(?:then )?(?:just )?(?:do it|go ahead|go for it|end it)\b",
    "you-deserve-pain": r"\byou (?:really |only |fully )?deserve to (?:die|suffer|be (?:hit|hurt|beaten|"
    r"punished|alone))\b",
    "hurt-somebody": rf"{_ACT}(?P<act>{_VIOLENCE} (?:back )?{_PERSON}\b{_NOT_MEANT}|"
    rf"{_UNAMBIGUOUS_VIOLENCE} them\b{_NOT_MEANT})",
    "deserves-it": r"\b(?:he|she|they|(?:your|that|the) (?:wife|husband|ex|boss|neighbou?r|child|kid|boy|girl|"
    r"man|woman|bitch|bastard))"
    r" (?:really |fully |clearly |has |have )?(?:(?:deserves?|had|has|have|got)(?: got)? (?:it coming|to (?:die|"
    r"bleed|suffer|be (?:hit|hurt|beaten|killed|scared))|"
    r"a (?:good )?(?:beating|slap|thrashing|hiding)))\b",
    "praise-of-violence": r"\b(?:a|the) (?:good |proper |sound |quick )?(?:beating|thrashing|slap|hiding|smack|"
    r"spanking|belting)\b[^.!?\n]{0,25}"
    r"\b(?:helps?|works?|teaches|never (?:did|hurt|harmed)|does (?:him|her|them|a child|no harm)|did no)\b|"
    r"\b(?:killing|hurting|hitting|burning|poisoning|attacking|stalking) (?:them|him|her|yourself|"
    r"those people) (?:is|would be) "
    r"(?:justified|right|the right|a good|brave|your duty|deserved|necessary)\b",
    "no-mercy": rf"{_SENTENCE}(?P<act>(?:don't|do not|never) stop (?:when|until|even if|because) (?:he|she|"
    rf"they) (?:cr(?:y|ies)|screams?|begs?|bleeds?|"
    r"learns?)|use (?:the|a|your) (?:belt|cane|whip|fists?)(?:,| on (?:him|her|them|the (?:child|boy|girl))))",
    "control-somebody": rf"{_ACT}(?P<act>lock (?:him|her|your \w+) (?:in|up|inside|away)\b(?! (?:the|his|her|"
    rf"its|a|your) (?:crate|cage|hutch|run|kennel|stable|"
    r"barn|box|garden|carrier))|follow (?:him|her) (?:home|everywhere|around|from|at night|in secret|until)|"
    r"tie (?:him|her) (?:up|down|to)|"
    r"make (?:him|her|them) (?:suffer|bleed|beg|fear|afraid|scared)|(?:hide|take away|burn) (?:his|her|"
    r"their) passport)",
    "stop-medicine": rf"{_ACT}(?P<act>(?:stop(?: taking| using| giving (?:him|her))?|quit(?: taking)?|skip|drop|"
    rf"come off|throw (?:away|out)|flush|leave off|double|triple) "
    rf"(?:all )?(?:of )?(?:your|the|his|her|that|those) (?:\w+ )?{_MEDICINE}\b){_SUPERVISED}",
    "all-the-tablets": rf"{_ACT}(?P<act>take (?:the (?:whole|entire|rest of the)|all (?:of )?(?:the|your)|"
    rf"every) (?:\w+ )?(?:bottle|box|packet|pack|pills?|tablets?)\b)"
    r"(?! (?:with|along|to|out|back|away|off)\b)",
    "praise-of-starving": r"\b(?:starving yourself|purging|throwing up after|not eating)\b[^.!?\n]{0,30}\b(?:is|"
    r"means|shows|proves) [^.!?\n]{0,30}"
    rf"\b(?:discipline|strength|strong|beautiful|control|purity)\b|{_ACT}hide (?:the|your) (?:plate|food|cuts|"
    rf"scars|bruises|marks|symptoms) from\b",
    "drunk-driving": r"\b(?:beers?|wine|drinks?|drunk|vodka|whiske?y|shots|glasses|joints?|"
    r"tipsy)\b[^\n]{0,120}\b(?P<act>(?:go ahead and|you can (?:still|safely|easily)|"
    r"you(?:'re| are) (?:fine|okay|ok|safe|good|all right) to|just|fine to|safe to|still) drive\b)",
    "no-ambulance": rf"{_SENTENCE}(?P<act>(?:don't|do not|no need to|never) (?:call|ring|phone|get) (?:an|the|"
    rf"any) (?:ambulance|paramedics))\b"
    r"(?![^.!?\n]{0,60}\b(?:yourself|again|instead))",
    "grooming-secret": rf"\bour (?:own )?little secret\b|{_SENTENCE}(?P<act>(?:don't|do not|"
    rf"never) tell (?:your (?:parents|mother|father|mum|mom|dad|teacher|therapist)|"
    r"anyone) about (?:us|this chat|our (?:talks|chats|messages)))\b",
    "hands-it-over": rf"\b(?:here(?:'s| is| are|, then,? is)|below (?:is|are|you'll find)|attached is|I(?:'ve|"
    rf" have) (?:written|made|drafted|prepared|put together)) "
    rf"(?:the|a|an|your|some|that) {_PROTECTIVE}[^.!?\n]{{0,50}}\b{_WEAPONS_OF_DECEIT}\b",
}
