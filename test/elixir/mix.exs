defmodule PyReactorElixir.MixProject do
  use Mix.Project

  def project do
    [
      app: :py_reactor_elixir,
      version: "0.1.0",
      elixir: "~> 1.14",
      deps: [{:py_reactor, path: "../..", manager: :rebar3}]
    ]
  end

  def application, do: [extra_applications: [:crypto, :logger]]
end
