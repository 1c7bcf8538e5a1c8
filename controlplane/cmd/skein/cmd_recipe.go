package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	buildv1 "github.com/skein-fleet/skein/proto/gen/skein/build/v1"
)

func (a *app) recipeCmd() *cobra.Command {
	return group("recipe", "how engines are built", "  skein recipe push small --file recipe.json\n  skein recipe list", a.recipePushCmd(), a.recipeListCmd(), a.recipeShowCmd())
}

func (a *app) recipePushCmd() *cobra.Command {
	var file string
	var blobs []string
	c := &cobra.Command{
		Use: "push NAME", Short: "keep a recipe under a name, for good", Args: args(cobra.ExactArgs(1)),
		Long:    "A recipe is JSON (docs/engines.md). --blob uploads the calibration cache or plugins that it names by digest.",
		Example: "  skein recipe push small --file recipe.json\n  skein recipe push int8-lyon --file recipe.json --blob calibration.cache",
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("read recipe: %w", err)
			}
			for _, b := range blobs {
				if _, err := a.uploadFrom(cmd.Context(), b); err != nil {
					return err
				}
			}
			r, err := a.builds().PushRecipe(cmd.Context(), &buildv1.PushRecipeRequest{Name: args[0], Json: text})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				line(w, "%s  %s  %s", r.GetRecipe().GetName(), short(r.GetRecipe().GetDigest()), r.GetRecipe().GetSummary())
			})
		},
	}
	c.Flags().StringVar(&file, "file", "", "the recipe, JSON")
	c.Flags().StringArrayVar(&blobs, "blob", nil, "file that the recipe names, uploaded first")
	_ = c.MarkFlagRequired("file")
	return c
}

func (a *app) recipeListCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "list recipes", Args: args(cobra.NoArgs), Example: "  skein recipe list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.builds().ListRecipes(cmd.Context(), &buildv1.ListRecipesRequest{})
			if err != nil {
				return err
			}
			return a.emitList(r, func(w io.Writer) {
				row(w, "RECIPE", "DIGEST", "WHAT", "CREATED", "BY")
				for _, x := range r.GetRecipes() {
					row(w, x.GetName(), short(x.GetDigest()), x.GetSummary(), stamp(x.GetCreated()), x.GetCreatedBy())
				}
			})
		},
	}
}

func (a *app) recipeShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show RECIPE", Short: "show a recipe, or check a file", Args: args(cobra.ExactArgs(1)),
		Example:           "  skein recipe show fp16\n  skein recipe show ./recipe.json",
		ValidArgsFunction: a.offer(a.recipeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := recipeText(args[0])
			if err != nil {
				return err
			}
			r, err := a.builds().GetRecipe(cmd.Context(), &buildv1.GetRecipeRequest{Recipe: text})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				row(w, "recipe", r.GetRecipe().GetName())
				row(w, "digest", r.GetRecipe().GetDigest())
				row(w, "what", r.GetRecipe().GetSummary())
				row(w, "json", string(r.GetRecipe().GetJson()))
			})
		},
	}
}
