package main

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/gantry-os/gantry/model"
)

var operators = []model.Operator{
	model.OpUnique, model.OpCluster, model.OpGroupBy, model.OpMaxPer, model.OpLike, model.OpUnlike, model.OpIs,
}

// parseConstraint reads "ATTRIBUTE OPERATOR [VALUE]", or the same parted by colons. Operators may be written in lower case.
func parseConstraint(text string) (model.Constraint, error) {
	attribute, rest := cutSpace(text)
	op, value := cutSpace(rest)
	if !isOperator(op) {
		parts := strings.SplitN(strings.TrimSpace(text), ":", 3)
		if len(parts) < 2 || !isOperator(parts[1]) {
			return model.Constraint{}, fmt.Errorf("%q is no constraint: write 'ATTRIBUTE OPERATOR [VALUE]' such as 'hostname UNIQUE' or 'rack LIKE r[12]'; "+
				"operators are %s", text, operatorList())
		}
		attribute, op, value = parts[0], parts[1], ""
		if len(parts) == 3 {
			value = parts[2]
		}
	}
	return model.Constraint{Attribute: attribute, Operator: model.Operator(strings.ToUpper(op)), Value: value}, nil
}

// cutSpace parts the first word from what follows the white space after it.
func cutSpace(s string) (word, rest string) {
	s = strings.TrimSpace(s)
	i := strings.IndexFunc(s, unicode.IsSpace)
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimSpace(s[i:])
}

func isOperator(s string) bool { return slices.Contains(operators, model.Operator(strings.ToUpper(s))) }

func operatorList() string {
	names := make([]string, len(operators))
	for i, op := range operators {
		names[i] = string(op)
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}
