package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// configure sets the flags of a command that its command line leaves out: from the environment, TESSERA_ and the command's and the flag's name in
// capitals, and from a YAML file of flags' names with their values. The command line comes first, then the environment, then the file.
func configure(cmd *cobra.Command, path string) error {
	values := map[string]string{}
	if path != "" {
		if err := readConfig(cmd, path, values); err != nil {
			return err
		}
	}
	for _, f := range settable(cmd) {
		if f.Changed {
			continue
		}
		variable := "TESSERA_" + strings.ToUpper(strings.ReplaceAll(cmd.Name()+"_"+f.Name, "-", "_"))
		where := path
		value, set := values[f.Name]
		if text, is := os.LookupEnv(variable); is {
			value, where, set = text, variable, true
		}
		if !set {
			continue
		}
		if err := cmd.Flags().Set(f.Name, value); err != nil {
			return &usageError{fmt.Errorf("%s: %s: %w", where, f.Name, err)}
		}
	}
	return nil
}

// settable are the flags that may be given so.
func settable(cmd *cobra.Command) (list []*pflag.Flag) {
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" && f.Name != "help" {
			list = append(list, f)
		}
	})
	return list
}

func readConfig(cmd *cobra.Command, path string, values map[string]string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var file map[string]yaml.Node
	if err := yaml.Unmarshal(data, &file); err != nil {
		return &usageError{fmt.Errorf("%s: %w; want a line FLAG: VALUE for each", path, err)}
	}
	var known []string
	for _, f := range settable(cmd) {
		known = append(known, f.Name)
	}
	for name, value := range file {
		switch {
		case !slices.Contains(known, name):
			return &usageError{fmt.Errorf("%s: line %d: there is no flag %q; there are %s", path, value.Line, name, strings.Join(known, ", "))}
		case value.Kind != yaml.ScalarNode:
			return &usageError{fmt.Errorf("%s: line %d: %s: want one value", path, value.Line, name)}
		}
		values[name] = value.Value
	}
	return nil
}
