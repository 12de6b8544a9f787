// Package complete answers what may follow on a command line, from the same model that parses
// it, and holds the scripts that ask on behalf of a shell.
package complete

import (
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Command is the hidden first word by which the scripts ask.
const Command = "__complete"

// Directives that a script follows instead of offering words.
const (
	Files = ":files"
	Dirs  = ":dirs"
)

// Candidates returns what may stand in place of the last word, each as "word" or
// "word\tdescription", or one directive. names lists what exists of a kind: values carry the
// kind in their tag "complete".
func Candidates(app *kong.Application, words []string, names func(kind string) []string) []string {
	if len(words) == 0 {
		words = []string{""}
	}
	last := words[len(words)-1]
	at := place{node: app.Node}
	for _, w := range words[:len(words)-1] {
		at.step(w)
	}
	if at.lost {
		return nil
	}
	if at.flag != nil { // the word before wants this one as its value
		return values(at.flag.Value, last, "", names)
	}
	if name, v, ok := strings.Cut(last, "="); ok && strings.HasPrefix(name, "--") && !at.literal {
		if f := at.find(name); f != nil {
			return values(f.Value, v, name+"=", names)
		}
		return nil
	}
	if strings.HasPrefix(last, "-") && !at.literal {
		return at.flags(last)
	}
	var found []string
	for _, c := range at.node.Children {
		if !c.Hidden && strings.HasPrefix(c.Name, last) {
			found = append(found, c.Name+"\t"+c.Help)
		}
	}
	if p := at.positional(); p != nil && len(at.node.Children) == 0 {
		found = values(p, last, "", names)
	}
	return found
}

// place is where in the grammar a command line has come to.
type place struct {
	node    *kong.Node
	args    int        // positional arguments of node that are taken
	flag    *kong.Flag // waits for its value
	literal bool       // after "--"
	lost    bool       // a word is no command that there is
}

func (p *place) step(w string) {
	switch {
	case p.flag != nil:
		p.flag = nil
	case w == "--":
		p.literal = true
	case !p.literal && strings.HasPrefix(w, "-") && w != "-":
		if f := p.find(w); f != nil && !strings.Contains(w, "=") && !f.IsBool() && !f.IsCounter() {
			p.flag = f
		}
	default:
		for _, c := range p.node.Children {
			if c.Name == w || slices.Contains(c.Aliases, w) {
				p.node, p.args = c, 0
				return
			}
		}
		p.args++
		p.lost = p.lost || len(p.node.Children) > 0
	}
}

func (p *place) find(w string) *kong.Flag {
	w, _, _ = strings.Cut(w, "=")
	for _, group := range p.node.AllFlags(false) {
		for _, f := range group {
			if w == "--"+f.Name || f.Short != 0 && w == "-"+string(f.Short) {
				return f
			}
		}
	}
	return nil
}

func (p *place) flags(prefix string) (found []string) {
	for _, group := range slices.Backward(p.node.AllFlags(true)) { // the command's own first
		for _, f := range group {
			forms := []string{"--" + f.Name}
			if f.Tag.Negatable == "_" {
				forms = append(forms, "--no-"+f.Name)
			}
			for _, form := range forms {
				if strings.HasPrefix(form, prefix) {
					found = append(found, form+"\t"+f.Help)
				}
			}
		}
	}
	return found
}

// positional is the argument that comes next; the last one repeats if it is a list.
func (p *place) positional() *kong.Positional {
	args := p.node.Positional
	switch {
	case p.args < len(args):
		return args[p.args]
	case len(args) > 0 && args[len(args)-1].IsCumulative():
		return args[len(args)-1]
	}
	return nil
}

// values are what v can be, each behind before ("--flag=").
func values(v *kong.Value, prefix, before string, names func(string) []string) (found []string) {
	var all []string
	kind := v.Tag.Get("complete")
	switch {
	case v.Enum != "":
		all = v.EnumSlice()
	case strings.HasPrefix(kind, ":"):
		if before != "" {
			return nil // a shell completes no file name inside a word of ours
		}
		return []string{kind}
	case kind != "":
		all = names(kind)
	}
	for _, w := range all {
		if w != "" && strings.HasPrefix(w, prefix) {
			found = append(found, before+w)
		}
	}
	return found
}

// Script returns the completion script of a shell for a program.
func Script(shell, program string) (string, error) {
	s, ok := map[string]string{"bash": bash, "zsh": zsh, "fish": fish}[shell]
	if !ok {
		return "", fmt.Errorf("shell %q: want bash, zsh or fish", shell)
	}
	return strings.NewReplacer("PROGRAM", program, "COMPLETE", Command).Replace(s), nil
}

// The colon and the equals sign break words in bash (COMP_WORDBREAKS), so the words are cut
// from the line again, and what bash already holds is taken off the candidates.
const bash = `# bash completion for PROGRAM
_PROGRAM() {
	local line=${COMP_LINE:0:COMP_POINT} cur=${COMP_WORDS[COMP_CWORD]} words last reply
	read -ra words <<<"$line"
	[[ $line == *' ' ]] && words+=('')
	last=${words[${#words[@]}-1]}
	COMPREPLY=()
	while IFS= read -r reply; do
		case $reply in
		:files) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$last"); return ;;
		:dirs) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$last"); return ;;
		esac
		reply=${reply%%$'\t'*}
		[[ $last == *[=:]* ]] && reply=${reply#"${last%"${last##*[=:]}"}"}
		COMPREPLY+=("$reply")
	done < <("${words[0]}" COMPLETE "${words[@]:1}" 2>/dev/null)
}
complete -F _PROGRAM PROGRAM
`

const zsh = `#compdef PROGRAM
_PROGRAM() {
	local reply
	local -a found
	for reply in "${(@f)$("${words[1]}" COMPLETE "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
		case $reply in
		'') ;;
		:files) _files; return ;;
		:dirs) _files -/; return ;;
		*$'\t'*) found+=("${${reply%%$'\t'*}//:/\\:}:${reply#*$'\t'}") ;;
		*) found+=("${reply//:/\\:}") ;;
		esac
	done
	(( $#found )) && _describe PROGRAM found
}
if [ "$funcstack[1]" = _PROGRAM ]; then _PROGRAM "$@"; else compdef _PROGRAM PROGRAM; fi
`

const fish = `# fish completion for PROGRAM
function __PROGRAM_complete
	set -l words (commandline -opc) (commandline -ct)
	for reply in ($words[1] COMPLETE $words[2..-1] 2>/dev/null)
		switch $reply
			case :files
				__fish_complete_path (commandline -ct)
			case :dirs
				__fish_complete_directories (commandline -ct)
			case '*'
				echo $reply
		end
	end
end
complete -c PROGRAM -f -a '(__PROGRAM_complete)'
`
