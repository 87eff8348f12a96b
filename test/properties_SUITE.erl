%%% Runs every property, that is every prop_*/0 of every prop_* module beside this one, found by itself: a new property
%%% needs no entry here. Each is a group of its own, so the log tells which one failed.
-module(properties_SUITE).

-export([all/0, groups/0, init_per_group/2, end_per_group/2]).
-export([holds/1]).

all() ->
    [{group, group(Property)} || Property <- properties()].

groups() ->
    [{group(Property), [], [holds]} || Property <- properties()].

init_per_group(Group, Config) ->
    [Property] = [P || P <- properties(), group(P) =:= Group],
    {ok, _} = application:ensure_all_started(py_reactor),
    [{property, Property} | Config].

end_per_group(_Group, _Config) ->
    application:stop(py_reactor).

holds(Config) ->
    {Module, Function} = proplists:get_value(property, Config),
    Options = [{numtests, 200}, nocolors],
    case proper:quickcheck(Module:Function(), Options) of
        true -> ok;
        false -> ct:fail({counterexample, proper:counterexample()})
    end.

%%% Internals

properties() ->
    Beams = filelib:wildcard("prop_*.beam", filename:dirname(code:which(?MODULE))),
    Modules = [list_to_atom(filename:basename(Beam, ".beam")) || Beam <- Beams],
    [{Module, Function} || Module <- Modules, {Function, 0} <- Module:module_info(exports), is_property(Function)].

is_property(Function) ->
    lists:prefix("prop_", atom_to_list(Function)).

group({Module, Function}) ->
    list_to_atom(lists:concat([Module, ":", Function])).
