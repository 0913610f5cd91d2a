#!/usr/bin/env python3
"""Finds circles of modules: files of the workspace's crates that import each other in a loop. Tests are left out.

    .ci/circles.py [CRATE...]      exits with 1 if there is one, and says which names tie it

An import is a `use` of this crate, or a path that begins with `crate::`, `super::` or `self::`. A name counts for the file
that defines it, whichever module hands it on by `pub use`.
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEFINES = re.compile(
    r"^\s*(?:pub(?:\([^)]*\))?\s+)?(?:const\s+|async\s+|unsafe\s+|extern\s+\"C\"\s+)*"
    r"(?:struct|enum|union|trait|type|fn|const|static|macro_rules!)\s+(\w+)", re.M)
MACRO = re.compile(r"^\s*(?:vocabulary!|counts!)\s*\{.*?^\s+(\w+)\s*[({]", re.M | re.S)


def without_tests(text):
    """Cuts off what only `#[cfg(test)]` compiles, and comments and strings."""
    text = re.sub(r'"(?:\\.|[^"\\])*"', '""', text)
    text = re.sub(r"//[^\n]*", "", text)
    while (found := re.search(r"#\[cfg\((?:all\()?test[^\]]*\]", text)):
        begin, end = found.start(), found.end()
        depth = 0
        for index in range(end, len(text)):
            if text[index] == "{":
                depth += 1
            elif text[index] == "}":
                depth -= 1
                if depth == 0:
                    end = index + 1
                    break
            elif text[index] == ";" and depth == 0:
                end = index + 1
                break
        text = text[:begin] + text[end:]
    return text


def tree(text):
    """The leaves of `a::{b, c::{d, e as f}}`, each as a list of words and the name it gets."""
    text = text.strip()
    open_ = text.find("{")
    if open_ < 0:
        path, _, name = text.partition(" as ")
        words = [word.strip() for word in path.strip().split("::") if word.strip()]
        return [(words, name.strip() or (words[-1] if words else ""))]
    head = [word for word in text[:open_].strip().split("::") if word]
    leaves, depth, begin = [], 0, open_ + 1
    for index in range(open_ + 1, len(text)):
        char = text[index]
        if char == "{":
            depth += 1
        if (char == "," and depth == 0) or (char == "}" and depth == 0):
            part = text[begin:index].strip()
            if part:
                leaves += [(head + words if words != ["self"] else head, name if words != ["self"] else head[-1])
                           for words, name in tree(part)]
            begin = index + 1
        if char == "}":
            depth -= 1
    return leaves


class Crate:
    def __init__(self, root):
        self.root, self.modules = root, {}
        self.load(root, ())

    def load(self, file, path):
        text = without_tests(file.read_text())
        uses = [leaf for found in re.finditer(r"\buse\s+([^;]+);", text) for leaf in tree(found.group(1))]
        handed_on = [leaf for found in re.finditer(r"\bpub(?:\([^)]*\))?\s+use\s+([^;]+);", text)
                     for leaf in tree(found.group(1))]
        body = re.sub(r"\buse\s+[^;]+;", "", text)
        inline = [(found.group(0).split("::"), "") for found in re.finditer(r"\b(?:crate|super|self)(?:::\w+)+", body)]
        children = re.findall(r"^\s*(?:pub(?:\([^)]*\))?\s+)?mod\s+(\w+)\s*;", text, re.M)
        defined = set(DEFINES.findall(text)) | set(MACRO.findall(text))
        self.modules[path] = (file, defined, children, handed_on, uses + inline)
        folder = file.parent if file.name in ("lib.rs", "main.rs", "mod.rs") else file.with_suffix("")
        for child in children:
            for candidate in (folder / f"{child}.rs", folder / child / "mod.rs"):
                if candidate.exists():
                    self.load(candidate, path + (child,))

    def absolute(self, words, path):
        """A path from inside a module as one from the crate's root; None if it leaves the crate."""
        path, words = list(path), list(words)
        if words and words[0] == "crate":
            return words[1:]
        if words and words[0] in ("super", "self"):
            while words and words[0] in ("super", "self"):
                if words.pop(0) == "super":
                    if not path:
                        return None
                    path.pop()
            return path + words
        return path + words if words and words[0] in self.modules[tuple(path)][2] else None

    def owner(self, words, seen=()):
        """The module that defines what stands at an absolute path."""
        module = ()
        for index, word in enumerate(words):
            _, defined, children, handed_on, _ = self.modules[module]
            if word in children and module + (word,) in self.modules:
                module += (word,)
                continue
            if word in defined:
                return module
            for leaf, name in handed_on:
                target = self.absolute(leaf, module)
                if target is None or (module, word) in seen:
                    continue
                if name == word:
                    return self.owner(target + list(words[index + 1:]), seen + ((module, word),))
                if name == "*":
                    found = self.owner(target[:-1] + list(words[index:]), seen + ((module, word),))
                    if found is not None:
                        return found
            return module
        return module

    def arrows(self):
        arrows = {}
        for module, (_, _, _, handed_on, uses) in self.modules.items():
            for words, _ in uses:
                if (words, _) in handed_on:
                    continue
                target = self.absolute(words, module)
                owner = None if target is None else self.owner([word for word in target if word != "*"])
                if owner is not None and owner != module:
                    arrows.setdefault(module, {}).setdefault(owner, set()).add(words[-1])
        return arrows


def of_folders(arrows):
    """The arrows between the modules of the crate's root, each with all that lies below it."""
    folders = {}
    for module, its in arrows.items():
        for target, names in its.items():
            if module[:1] != target[:1]:
                folders.setdefault(module[:1] + ("*",), {}).setdefault(target[:1] + ("*",), set()).update(names)
    return folders


def circles(arrows):
    """Strongly connected components of more than one module (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in arrows.get(node, {}):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            part = stack[stack.index(node):]
            del stack[stack.index(node):]
            if len(part) > 1:
                found.append(part)

    for node in list(arrows):
        if node not in index:
            visit(node)
    return found


def main():
    sys.setrecursionlimit(10_000)
    roots = [file for pattern in ("*/src/lib.rs", "*/*/src/lib.rs") for file in sorted(ROOT.glob(pattern))
             if "target" not in file.parts]
    wanted = sys.argv[1:]
    count = 0
    for root in roots:
        name = str(root.parent.parent.relative_to(ROOT))
        if wanted and name not in wanted:
            continue
        arrows = Crate(root).arrows()
        for part in circles(arrows) + circles(of_folders(arrows)):
            count += 1
            print(f"{name}: a circle of {len(part)} modules")
            for module in sorted(part):
                its = of_folders(arrows) if module[-1:] == ("*",) else arrows
                for target in sorted(set(its.get(module, {})) & set(part)):
                    names = ", ".join(sorted(its[module][target]))
                    print(f"  {'::'.join(module) or 'lib'} -> {'::'.join(target) or 'lib'}: {names}")
    if count:
        sys.exit(f"{count} circles")
    print("no circle of modules")


main()
