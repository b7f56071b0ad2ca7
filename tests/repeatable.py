"""What makes a cell do something else when it is run a second time: names that get another value under it."""

import ast


class _Cell(ast.NodeVisitor):
    """Follows the statements of a cell in order; what stands in functions is not run by the cell itself."""

    def __init__(self):
        self.bound, self.read, self.found = set(), set(), []
        self.own = []  # names that belong to a comprehension or a lambda

    def visit_FunctionDef(self, node):
        for each in (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(each)
        self._bind(node.name)

    def visit_ClassDef(self, node):
        for each in (*node.decorator_list, *node.bases):
            self.visit(each)
        self._bind(node.name)

    def visit_Lambda(self, node):
        for each in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(each)

    def _comprehension(self, node):
        targets = {name.id for part in node.generators for name in ast.walk(part.target) if isinstance(name, ast.Name)}
        self.own.append(targets)
        self.generic_visit(node)
        self.own.pop()

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_Assign(self, node):
        for each in (node.value, *node.targets):  # the right side comes first
            self.visit(each)

    def visit_AugAssign(self, node):
        self.visit(node.value)
        if isinstance(node.target, ast.Name):
            self._read(node.target.id)
            self._bind(node.target.id)
        else:
            self.visit(node.target)

    def visit_For(self, node):
        for each in (node.iter, node.target, *node.body, *node.orelse):
            self.visit(each)

    def visit_alias(self, node):
        self._bind((node.asname or node.name).partition(".")[0])

    def visit_Name(self, node):
        if any(node.id in names for names in self.own):
            return
        (self._read if isinstance(node.ctx, ast.Load) else self._bind)(node.id)

    def _read(self, name):
        if name not in self.bound:
            self.read.add(name)

    def _bind(self, name):
        if name in self.read and name not in self.found:
            self.found.append(name)
        self.bound.add(name)


def not_repeatable(notebook):
    """Cells that read a name of an earlier cell and give it another value: the second run begins with that value."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            follower = _Cell()
            follower.visit(ast.parse(cell.source))
            found += [f"{cell.id}: {name}" for name in follower.found]
    return found


def rebound_under_a_function(notebook):
    """Names that a function reads from its notebook, and that a cell after it gives another value than one before it.

    Run a second time, the cells between the two work with the later value until the earlier cell has been run again.
    """
    trees = [(cell.id, ast.parse(cell.source)) for cell in notebook.cells if cell.cell_type == "code"]
    bound = {}
    for place, (_, tree) in enumerate(trees):
        follower = _Cell()
        follower.visit(tree)
        for name in follower.bound:
            bound.setdefault(name, set()).add(place)
    found = []
    for place, (name_of_cell, tree) in enumerate(trees):
        for function in (each for each in tree.body if isinstance(each, ast.FunctionDef)):
            names = [each for each in ast.walk(function) if isinstance(each, ast.Name)]
            own = {each.arg for each in ast.walk(function) if isinstance(each, ast.arg)}
            own |= {each.id for each in names if not isinstance(each.ctx, ast.Load)}
            own |= {each.name for each in ast.walk(function) if isinstance(each, ast.FunctionDef)}
            for name in sorted({each.id for each in names} - own):
                places = bound.get(name, set())
                if places and min(places) <= place < max(places):
                    found.append(f"{name_of_cell}: {function.name} reads {name}")
    return found
