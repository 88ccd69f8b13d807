package main

import (
	"github.com/spf13/cobra"

	build "github.com/mainzdb/mainz/internal/version"
)

// version is set by the Makefile; go install sets that of the module instead.
var version string

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Example: `  mainz version
  mainz version -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := build.Read(version)
			if jsonOutput(cmd) {
				return newEncoder(cmd.OutOrStdout()).Encode(v)
			}
			return v.Print(cmd.OutOrStdout(), "mainz")
		},
	}
}
