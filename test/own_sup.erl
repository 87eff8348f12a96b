%%% A supervisor of a user's.
-module(own_sup).

-behaviour(supervisor).

-export([start_link/1, stop/1]).
-export([init/1]).

start_link(Children) ->
    supervisor:start_link(?MODULE, Children).

stop(Supervisor) ->
    gen_server:stop(Supervisor).

init(Children) ->
    {ok, {#{}, Children}}.
