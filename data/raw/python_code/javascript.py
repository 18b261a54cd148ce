"""Prints a simple Python function as JavaScript, node by node of its syntax tree. Used by make.py, beside this file.

The subset: functions, methods and generators of positional parameters, with assignments, if, while, for, try with one
handler, return, raise, assert, del, break, continue, pass; names, literals, attributes, items and slices, calls,
operators, comparisons, conditional expressions, lambdas, f-strings, comprehensions of lists over one loop; the
built-in functions and the methods of strings, lists and dictionaries that the tables below name. Anything else raises
`Unsupported`, docstrings, annotations and decorators among it: what the JavaScript can't say is not asked for.

It is a print of what stands there, not a port: what is true of an empty list, what an integer divided by another is,
or which attribute is a method that JavaScript has under the same name, differs between the two languages.

    def first(self, names):             first(names) {
        for name in names:                  for (let name of names) {
            if name in self._seen:              if (this._seen.includes(name)) {
                return name                         return name;
        return None                             }
                                            }
                                            return null;
                                        }
"""

from __future__ import annotations

import ast
import builtins
import json
import re
from collections.abc import Callable, Iterable, Sequence

IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
RESERVED = {
    "arguments",
    "case",
    "catch",
    "const",
    "debugger",
    "default",
    "delete",
    "do",
    "enum",
    "eval",
    "export",
    "extends",
    "false",
    "function",
    "implements",
    "instanceof",
    "interface",
    "let",
    "new",
    "null",
    "package",
    "private",
    "protected",
    "public",
    "static",
    "super",
    "switch",
    "this",
    "throw",
    "true",
    "typeof",
    "undefined",
    "var",
    "void",
}

# How strongly a JavaScript operator binds.
CONDITIONAL, OR, AND, EQUALITY, RELATION, SHIFT, SUM, PRODUCT, POWER, UNARY, CALL = (
    2,
    3,
    4,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    17,
)
BINARY: dict[type[ast.operator], tuple[str, int]] = {
    ast.BitOr: ("|", 5),
    ast.BitXor: ("^", 6),
    ast.BitAnd: ("&", 7),
    ast.LShift: ("<<", SHIFT),
    ast.RShift: (">>", SHIFT),
    ast.Add: ("+", SUM),
    ast.Sub: ("-", SUM),
    ast.Mult: ("*", PRODUCT),
    ast.Div: ("/", PRODUCT),
    ast.Mod: ("%", PRODUCT),
}
COMPARED: dict[type[ast.cmpop], tuple[str, int]] = {
    ast.Eq: ("===", EQUALITY),
    ast.NotEq: ("!==", EQUALITY),
    ast.Lt: ("<", RELATION),
    ast.LtE: ("<=", RELATION),
    ast.Gt: (">", RELATION),
    ast.GtE: (">=", RELATION),
}
UNARIES: dict[type[ast.unaryop], str] = {ast.Not: "!", ast.USub: "-", ast.UAdd: "+", ast.Invert: "~"}

# Built-in functions of so many arguments → JavaScript, {0} and {1} being the arguments.
FUNCTIONS = {
    ("abs", 1): "Math.abs({0})",
    ("bool", 1): "Boolean({0})",
    ("chr", 1): "String.fromCharCode({0})",
    ("dict", 0): "{{}}",
    ("float", 1): "parseFloat({0})",
    ("getattr", 2): "{0}[{1}]",
    ("int", 1): "parseInt({0})",
    ("len", 1): "{0}.length",
    ("list", 0): "[]",
    ("list", 1): "Array.from({0})",
    ("max", 2): "Math.max({0}, {1})",
    ("min", 2): "Math.min({0}, {1})",
    ("ord", 1): "{0}.charCodeAt(0)",
    ("print", 0): "console.log()",
    ("print", 1): "console.log({0})",
    ("repr", 1): "JSON.stringify({0})",
    ("reversed", 1): "[...{0}].reverse()",
    ("set", 0): "new Set()",
    ("set", 1): "new Set({0})",
    ("sorted", 1): "[...{0}].sort()",
    ("str", 1): "String({0})",
    ("type", 1): "{0}.constructor",
}
# Methods of so many arguments → JavaScript, {0} being the object.
METHODS = {
    ("append", 1): "{0}.push({1})",
    ("endswith", 1): "{0}.endsWith({1})",
    ("extend", 1): "{0}.push(...{1})",
    ("find", 1): "{0}.indexOf({1})",
    ("items", 0): "Object.entries({0})",
    ("join", 1): "{1}.join({0})",
    ("keys", 0): "Object.keys({0})",
    ("lower", 0): "{0}.toLowerCase()",
    ("lstrip", 0): "{0}.trimStart()",
    ("replace", 2): "{0}.replaceAll({1}, {2})",
    ("rfind", 1): "{0}.lastIndexOf({1})",
    ("rstrip", 0): "{0}.trimEnd()",
    ("startswith", 1): "{0}.startsWith({1})",
    ("strip", 0): "{0}.trim()",
    ("upper", 0): "{0}.toUpperCase()",
    ("values", 0): "Object.values({0})",
}
# Of these names with another number of arguments JavaScript has nothing alike.
PYTHONS_OWN = {name for name, _ in METHODS} | {
    "index",
    "format",
    "encode",
    "decode",
    "splitlines",
    "setdefault",
    "partition",
}


class Unsupported(Exception):
    """What is outside the subset."""


def printed(source: str) -> str:
    """The JavaScript of one Python function.

    Raises
        Unsupported  where it holds anything outside the subset.
    """
    (function,) = ast.parse(source).body
    if not isinstance(function, ast.FunctionDef):
        raise Unsupported(type(function).__name__)
    return "\n".join(_Function(function).lines()) + "\n"


class _Function:
    def __init__(self, node: ast.FunctionDef) -> None:
        self.node = node
        arguments = node.args
        if node.decorator_list or node.returns or arguments.posonlyargs or arguments.kwonlyargs or arguments.kwarg:
            raise Unsupported("a decorator, an annotation, or a parameter that is not positional")
        given = [*arguments.args, *([arguments.vararg] if arguments.vararg else [])]
        if any(one.annotation for one in given):
            raise Unsupported("an annotation")
        self.parameters = [one.arg for one in given]
        self.is_method = self.parameters[:1] == ["self"]
        self.handlers: list[str] = []

    def lines(self) -> list[str]:
        node, arguments = self.node, self.node.args
        if any(isinstance(one, ast.Global | ast.Nonlocal | ast.Await) for one in ast.walk(node)):
            raise Unsupported("global, nonlocal or await")
        defaults = [""] * (len(arguments.args) - len(arguments.defaults)) + [
            f" = {self.value(default)}" for default in arguments.defaults
        ]
        shown = [self.name(one.arg) + default for one, default in zip(arguments.args, defaults, strict=True)]
        if arguments.vararg:
            shown.append(f"...{self.name(arguments.vararg.arg)}")
        generates = any(isinstance(one, ast.Yield | ast.YieldFrom) for one in ast.walk(node))
        if self.is_method:
            name = "constructor" if node.name == "__init__" else self.name(node.name)
            head = f"{'*' if generates else ''}{name}({', '.join(shown[1:])}) {{"
        else:
            head = f"function{'*' if generates else ''} {self.name(node.name)}({', '.join(shown)}) {{"
        return [head, *_indented([*self.declared(), *self.block(node.body)]), "}"]

    def declared(self) -> list[str]:
        """The names that are first set where a `let` would not reach as far as they do."""
        loops: set[str] = set()
        for loop in ast.walk(self.node):
            if isinstance(loop, ast.For):
                loops |= _names(loop.target)
                if _names(loop.target) & (_read_outside(self.node, loop) | _stored(loop.body) | set(self.parameters)):
                    raise Unsupported("a loop's variable that is used outside it or set in it")
        self.known = set(self.parameters) | loops
        first_set: list[str] = []
        for statement in self.node.body:
            inner = _stored([statement]) - self.known
            if not isinstance(statement, ast.Assign):
                first_set += sorted(inner)
            self.known |= inner
        self.known = set(self.parameters) | loops | set(first_set)
        return [f"let {', '.join(self.name(name) for name in first_set)};"] if first_set else []

    def block(self, body: Sequence[ast.stmt]) -> list[str]:
        return [line for statement in body for line in self.statement(statement)]

    def statement(self, node: ast.stmt) -> list[str]:
        method: Callable[[ast.stmt], Iterable[str]] | None = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise Unsupported(type(node).__name__)
        return list(method(node))

    # --- statements

    def _return(self, node: ast.Return) -> Iterable[str]:
        yield f"return {self.value(node.value)};" if node.value else "return;"

    def _expr(self, node: ast.Expr) -> Iterable[str]:
        if isinstance(node.value, ast.Yield):
            yield f"yield {self.value(node.value.value)};" if node.value.value else "yield;"
        elif isinstance(node.value, ast.YieldFrom):
            yield f"yield* {self.value(node.value.value)};"
        elif isinstance(node.value, ast.Call):
            yield f"{self.value(node.value)};"
        else:
            raise Unsupported("a docstring, or a value that is not used")

    def _assign(self, node: ast.Assign) -> Iterable[str]:
        (target, *others) = node.targets
        if others:
            raise Unsupported("one value for several targets")
        new = _names(target) - self.known
        parts = target.elts if isinstance(target, ast.Tuple) else [target]
        is_new = bool(new) and all(isinstance(part, ast.Name) and part.id in new for part in parts)
        if new and not is_new:
            raise Unsupported("new names beside others")
        self.known |= new
        yield f"{'let ' if is_new else ''}{self.target(target)} = {self.value(node.value)};"

    def _augassign(self, node: ast.AugAssign) -> Iterable[str]:
        if type(node.op) not in BINARY:
            raise Unsupported(type(node.op).__name__)
        yield f"{self.target(node.target)} {BINARY[type(node.op)][0]}= {self.value(node.value)};"

    def _if(self, node: ast.If, word: str = "if") -> Iterable[str]:
        yield f"{word} ({self.value(node.test)}) {{"
        yield from _indented(self.block(node.body))
        if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
            yield from self._if(node.orelse[0], "} else if")
            return
        if node.orelse:
            yield "} else {"
            yield from _indented(self.block(node.orelse))
        yield "}"

    def _while(self, node: ast.While) -> Iterable[str]:
        if node.orelse:
            raise Unsupported("else of a loop")
        yield f"while ({self.value(node.test)}) {{"
        yield from _indented(self.block(node.body))
        yield "}"

    def _for(self, node: ast.For) -> Iterable[str]:
        if node.orelse:
            raise Unsupported("else of a loop")
        called = node.iter.func.id if isinstance(node.iter, ast.Call) and isinstance(node.iter.func, ast.Name) else ""
        arguments = node.iter.args if isinstance(node.iter, ast.Call) else []
        target = self.target(node.target)
        if called == "range" and isinstance(node.target, ast.Name) and len(arguments) in (1, 2):
            start = self.value(arguments[0]) if len(arguments) == 2 else "0"
            end = self.within(arguments[-1], SHIFT)
            yield f"for (let {target} = {start}; {target} < {end}; {target}++) {{"
        elif called == "enumerate" and len(arguments) == 1 and not node.iter.keywords:  # type: ignore[attr-defined]
            yield f"for (let {target} of {self.within(arguments[0], CALL)}.entries()) {{"
        else:
            yield f"for (let {target} of {self.value(node.iter)}) {{"
        yield from _indented(self.block(node.body))
        yield "}"

    def _break(self, _: ast.Break) -> Iterable[str]:
        yield "break;"

    def _continue(self, _: ast.Continue) -> Iterable[str]:
        yield "continue;"

    def _pass(self, _: ast.Pass) -> Iterable[str]:
        yield ";"

    def _raise(self, node: ast.Raise) -> Iterable[str]:
        if node.cause or (node.exc is None and not self.handlers):
            raise Unsupported("raise from, or outside a handler")
        if node.exc is None:
            yield f"throw {self.handlers[-1]};"
        elif isinstance(node.exc, ast.Name) and node.exc.id[:1].isupper():
            yield f"throw {self.name(node.exc.id)};"
        else:
            yield f"throw {self.value(node.exc)};"

    def _assert(self, node: ast.Assert) -> Iterable[str]:
        yield f"console.assert({', '.join(self.value(one) for one in (node.test, node.msg) if one)});"

    def _delete(self, node: ast.Delete) -> Iterable[str]:
        (target, *others) = node.targets
        if others or not isinstance(target, ast.Attribute | ast.Subscript):
            raise Unsupported("del of a name or of several targets")
        yield f"delete {self.target(target)};"

    def _try(self, node: ast.Try) -> Iterable[str]:
        if node.orelse or len(node.handlers) > 1:
            raise Unsupported("try with an else or several handlers")
        yield "try {"
        yield from _indented(self.block(node.body))
        for handler in node.handlers:
            caught = self.name(handler.name or "error")
            if caught in self.known:
                raise Unsupported("a caught error of a name that is known")
            yield f"}} catch ({caught}) {{"
            if handler.type is not None:
                yield from _indented([f"if (!({self.is_one_of(caught, handler.type)})) throw {caught};"])
            self.handlers.append(caught)
            yield from _indented(self.block(handler.body))
            self.handlers.pop()
        if node.finalbody:
            yield "} finally {"
            yield from _indented(self.block(node.finalbody))
        yield "}"

    # --- expressions

    def value(self, node: ast.expr) -> str:
        return self.expression(node)[0]

    def within(self, node: ast.expr, least: int) -> str:
        """An expression inside one that binds so strongly."""
        text, strength = self.expression(node)
        return text if strength >= least else f"({text})"

    def name(self, name: str) -> str:
        if name in RESERVED or name.startswith("__") or not IDENTIFIER.fullmatch(name):
            raise Unsupported(f"the name {name}")
        return name

    def target(self, node: ast.expr) -> str:
        if isinstance(node, ast.Subscript) and (isinstance(node.slice, ast.Slice) or _is_negative(node.slice)):
            raise Unsupported("setting a slice or from the end")
        if not isinstance(node, ast.Name | ast.Attribute | ast.Subscript | ast.Tuple):
            raise Unsupported("a target")
        if isinstance(node, ast.Tuple):
            shown = [self.target(one) for one in node.elts]
            if len(set(shown)) < len(shown):
                raise Unsupported("a target twice")
            return f"[{', '.join(shown)}]"
        return self.value(node)

    def is_one_of(self, value: str, kinds: ast.expr) -> str:
        every = kinds.elts if isinstance(kinds, ast.Tuple) else [kinds]
        if not all(isinstance(kind, ast.Name | ast.Attribute) for kind in every):
            raise Unsupported("a class that is computed")
        for kind in every:
            if isinstance(kind, ast.Name) and kind.id in ("str", "int", "float", "bool", "bytes", "list", "dict"):
                raise Unsupported("a class that JavaScript has not")
        return " || ".join(f"{value} instanceof {self.value(kind)}" for kind in every)

    def expression(self, node: ast.expr) -> tuple[str, int]:
        """The text, and how strongly its outermost operator binds."""
        match node:
            case ast.Constant(value=None):
                return "null", CALL
            case ast.Constant(value=bool(value)):
                return str(value).lower(), CALL
            case ast.Constant(value=str(value)):
                return json.dumps(value), CALL
            case ast.Constant(value=int(value) | float(value)):
                return repr(value), CALL
            case ast.Name(id="self") if self.is_method:
                return "this", CALL
            case ast.Name(id=name):
                if name in vars(builtins) and name.islower():
                    raise Unsupported(f"the built-in {name}")
                return self.name(name), CALL
            case ast.Attribute(value=owner, attr=attribute):
                return f"{self.within(owner, CALL)}.{self.name(attribute)}", CALL
            case ast.Subscript(value=owner, slice=ast.Slice(lower=lower, upper=upper, step=None)):
                ends = [self.value(lower) if lower else "0", *([self.value(upper)] if upper else [])]
                return f"{self.within(owner, CALL)}.slice({', '.join(ends if lower or upper else [])})", CALL
            case ast.Subscript(value=owner, slice=index):
                if isinstance(index, ast.Tuple | ast.Slice):
                    raise Unsupported("an index of several parts")
                negative = _is_negative(index)
                text = f".at({self.value(index)})" if negative else f"[{self.value(index)}]"
                return f"{self.within(owner, CALL)}{text}", CALL
            case ast.Call():
                return self.call(node)
            case ast.BinOp(left=ast.Constant(value=str()), op=ast.Mod() | ast.Mult()):
                raise Unsupported("a string's own operator")
            case ast.BinOp(left=left, op=ast.FloorDiv(), right=right):
                return f"Math.floor({self.within(left, PRODUCT)} / {self.within(right, PRODUCT + 1)})", CALL
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                return f"{self.within(left, CALL)} ** {self.within(right, POWER)}", POWER
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in BINARY:
                sign, strength = BINARY[type(operator)]
                return f"{self.within(left, strength)} {sign} {self.within(right, strength + 1)}", strength
            case ast.BoolOp(op=operator, values=values):
                sign, strength = ("&&", AND) if isinstance(operator, ast.And) else ("||", OR)
                return f" {sign} ".join(self.within(value, strength + 1) for value in values), strength
            case ast.UnaryOp(op=operator, operand=operand):
                return f"{UNARIES[type(operator)]}{self.within(operand, UNARY + 1)}", UNARY
            case ast.Compare(left=left, ops=[operator], comparators=[right]):
                return self.comparison(left, operator, right)
            case ast.Compare(left=left, ops=[first, second], comparators=[ast.Name() as middle, right]):
                parts = self.comparison(left, first, middle), self.comparison(middle, second, right)
                return " && ".join(text for text, _ in parts), AND
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return f"{self.within(test, OR)} ? {self.value(body)} : {self.value(orelse)}", CONDITIONAL
            case ast.Lambda(args=arguments, body=body):
                return f"{self.arrow(arguments)} => {self.value(body)}", 1
            case ast.JoinedStr(values=values):
                return f"`{''.join(self.part(value) for value in values)}`", CALL
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return f"[{', '.join(self.item(one) for one in items)}]", CALL
            case ast.Set(elts=items):
                return f"new Set([{', '.join(self.item(one) for one in items)}])", CALL
            case ast.Dict(keys=keys, values=values):
                pairs = [self.pair(key, value) for key, value in zip(keys, values, strict=True)]
                return f"{{{', '.join(pairs)}}}", CALL
            case ast.ListComp(elt=element, generators=[loop]):
                return self.mapped(element, loop), CALL
        raise Unsupported(type(node).__name__)

    def call(self, node: ast.Call) -> tuple[str, int]:
        function, arguments = node.func, node.args
        plain = not node.keywords and not any(isinstance(one, ast.Starred) for one in arguments)
        if isinstance(function, ast.Name):
            name = function.id
            if name == "isinstance" and plain:
                return self.is_one_of(self.within(arguments[0], CALL), arguments[1]), OR
            if name in ("any", "all") and plain and isinstance(arguments[0], ast.GeneratorExp):
                return self.some_or_every(name, arguments[0]), CALL
            if name in vars(builtins) and name.islower():
                form = FUNCTIONS.get((name, len(arguments)))
                if form is None or not plain:
                    raise Unsupported(f"the built-in {name}")
                least = CALL if form.startswith("{0}") else 0
                return form.format(*(self.within(one, least) for one in arguments)), CALL
        if isinstance(function, ast.Attribute):
            if ast.unparse(function.value) == "super()":
                shown = self.arguments(node)
                method = "" if function.attr == "__init__" else f".{self.name(function.attr)}"
                return f"super{method}({shown})", CALL
            form = METHODS.get((function.attr, len(arguments))) if plain else None
            if form is not None:
                parts = [self.within(one, CALL) for one in (function.value, *arguments)]
                if function.attr in ("startswith", "endswith") and isinstance(arguments[0], ast.Tuple):
                    raise Unsupported("one of several beginnings")
                return form.format(*parts), CALL
            if function.attr in PYTHONS_OWN:
                raise Unsupported(f"the method {function.attr}")
        last = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        made = "new " if last[:1].isupper() or last.lstrip("_")[:1].isupper() else ""
        return f"{made}{self.within(function, CALL)}({self.arguments(node)})", CALL

    def arguments(self, node: ast.Call) -> str:
        """Those with a keyword in an object at the end, as JavaScript's functions take options."""
        shown = [self.item(one) for one in node.args]
        if node.keywords:
            pairs = [
                f"...{self.value(one.value)}" if one.arg is None else f"{self.name(one.arg)}: {self.value(one.value)}"
                for one in node.keywords
            ]
            shown.append(f"{{{', '.join(pairs)}}}")
        return ", ".join(shown)

    def comparison(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> tuple[str, int]:
        single = isinstance(right, ast.Constant) and (right.value is None or isinstance(right.value, bool))
        if isinstance(operator, ast.In | ast.NotIn):
            sign = "!" if isinstance(operator, ast.NotIn) else ""
            return f"{sign}{self.within(right, CALL)}.includes({self.value(left)})", UNARY if sign else CALL
        if isinstance(operator, ast.Is | ast.IsNot) and not single:
            sign = "!" if isinstance(operator, ast.IsNot) else ""
            return f"{sign}Object.is({self.value(left)}, {self.value(right)})", UNARY if sign else CALL
        if isinstance(operator, ast.Is | ast.IsNot):
            sign, strength = ("===" if isinstance(operator, ast.Is) else "!=="), EQUALITY
        elif single:
            raise Unsupported("== with None, True or False")
        else:
            sign, strength = COMPARED[type(operator)]
        return f"{self.within(left, strength + 1)} {sign} {self.within(right, strength + 1)}", strength

    def item(self, node: ast.expr) -> str:
        return f"...{self.within(node.value, CALL)}" if isinstance(node, ast.Starred) else self.value(node)

    def pair(self, key: ast.expr | None, value: ast.expr) -> str:
        if key is None:
            return f"...{self.value(value)}"
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            return f"{json.dumps(key.value)}: {self.value(value)}"
        return f"[{self.value(key)}]: {self.value(value)}"

    def part(self, node: ast.expr) -> str:
        """Of a template literal."""
        if isinstance(node, ast.Constant):
            return json.dumps(node.value)[1:-1].replace('\\"', '"').replace("`", "\\`").replace("${", "\\${")
        if isinstance(node, ast.FormattedValue) and node.conversion == -1 and node.format_spec is None:
            return f"${{{self.value(node.value)}}}"
        raise Unsupported("a format")

    def arrow(self, arguments: ast.arguments) -> str:
        if arguments.posonlyargs or arguments.kwonlyargs or arguments.vararg or arguments.kwarg or arguments.defaults:
            raise Unsupported("a lambda's parameter that is not plain")
        return f"({', '.join(self.name(one.arg) for one in arguments.args)})"

    def loop(self, loop: ast.comprehension) -> tuple[str, str]:
        """What is gone over, and the arrow's parameter."""
        if loop.is_async:
            raise Unsupported("an asynchronous loop")
        parameter = f"({self.target(loop.target)})"
        over = self.within(loop.iter, CALL)
        if loop.ifs:
            test = ast.BoolOp(ast.And(), loop.ifs) if len(loop.ifs) > 1 else loop.ifs[0]
            over += f".filter({parameter} => {self.value(test)})"
        return over, parameter

    def mapped(self, element: ast.expr, loop: ast.comprehension) -> str:
        over, parameter = self.loop(loop)
        if ast.unparse(element) == ast.unparse(loop.target) and loop.ifs:
            return over
        return f"{over}.map({parameter} => {self.within(element, 2)})"

    def some_or_every(self, name: str, node: ast.GeneratorExp) -> str:
        (loop, *others) = node.generators
        if others:
            raise Unsupported("several loops")
        over, parameter = self.loop(loop)
        return f"{over}.{'some' if name == 'any' else 'every'}({parameter} => {self.value(node.elt)})"


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _is_negative(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)


def _names(target: ast.AST) -> set[str]:
    """The names that a target sets."""
    return {one.id for one in ast.walk(target) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}


def _stored(body: Iterable[ast.AST]) -> set[str]:
    """The names that statements set, but for those of loops and comprehensions."""
    found: set[str] = set()
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Assign):
                found |= {name for target in node.targets for name in _names(target)}
            elif isinstance(node, ast.AugAssign):
                found |= _names(node.target)
    return found


def _read_outside(function: ast.AST, loop: ast.For) -> set[str]:
    """The names that stand outside a loop, but in other loops that set them."""
    targets = _names(loop.target)
    found: set[str] = set()
    pending: list[ast.AST] = [function]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.For) and _names(node.target) & targets:
            pending.append(node.iter)
            continue
        if isinstance(node, ast.Name):
            found.add(node.id)
        pending += ast.iter_child_nodes(node)
    return found
